"""Small random drafters, and the same networks without cache, trees or batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from recorder import Recorder
from small_models import IMAGE_TOKEN, VOCAB, small_text_config
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    PreTrainedModel,
)

from smart_serve.drafters.draft_model import DraftModel
from smart_serve.drafters.eagle import Eagle
from smart_serve.drafters.eagle3 import Eagle3, Eagle3Module
from smart_serve.drafters.feature_network import FeatureDraftNetwork
from smart_serve.drafters.forward import GraphedDraftForward
from smart_serve.drafters.network import DraftNetwork
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.drafters.protocol import DrafterInfo, DraftInput
from smart_serve.messages import ImageSpan
from smart_serve.models.families import load_target
from smart_serve.models.rope import RopePositions

HIDDEN = 32
DRAFT_VOCAB = 23
"""Of EAGLE-3's reduced vocabulary."""

LogProbs = Callable[["History", list[int]], torch.Tensor]
"""[V] log-probabilities after a sequence's root and a path below it, by the target's token ids."""


@dataclass
class History:
    """What one sequence has sent: tokens and what stands beside them."""

    info: DrafterInfo
    tokens: list[int] = field(default_factory=list)
    vectors: torch.Tensor = field(default_factory=lambda: torch.zeros(0, HIDDEN))

    def extend(self, rng: np.random.Generator, count: int, pictures: bool = False) -> DraftInput:
        """`count` more tokens, four of them a picture's with `pictures`."""
        start = len(self.tokens)
        new = rng.integers(0, IMAGE_TOKEN, count)
        if pictures:
            new[1:5] = IMAGE_TOKEN
        self.tokens += new.tolist()
        rows = {"none": 0, "images": 4 * pictures}.get(self.info.vectors, count)
        if rows == 0:
            return DraftInput(0, start, new, None)
        vectors = torch.from_numpy(rng.normal(size=(rows, self.info.vector_size))).float()
        self.vectors = torch.cat((self.vectors, vectors)) if len(self.vectors) else vectors
        return DraftInput(0, start, new, vectors)

    def rope_positions(self, size: int) -> torch.Tensor:
        """Of the first `size` rows, as the stock modules take them."""
        return torch.arange(size)[None]


class MropeHistory(History):
    """Each picture is two rows of two tokens."""

    def extend(self, rng: np.random.Generator, count: int, pictures: bool = False) -> DraftInput:
        item = super().extend(rng, count, pictures)
        places = item.start + np.arange(count)
        return msgspec.structs.replace(item, positions=self._rope().at(places))

    def rope_positions(self, size: int) -> torch.Tensor:
        return torch.from_numpy(self._rope().at(np.arange(size)))[:, None]

    def _rope(self) -> RopePositions:
        images = np.flatnonzero(np.asarray(self.tokens) == IMAGE_TOKEN)
        return RopePositions([ImageSpan(int(at), 4, "hash", (2, 2)) for at in images[::4]])


def as_drafter(network: DraftNetwork, num_blocks: int = 200) -> NetworkDrafter:
    return NetworkDrafter(network, num_blocks=num_blocks, block_tokens=4)


def replayed(drafter: NetworkDrafter) -> Recorder:
    """From now on passes run as captured graphs, as on a GPU."""
    recorder = Recorder()
    drafter.run_by(partial(GraphedDraftForward, capture=recorder))
    return recorder


def small_config(layers: int = 1, attention: str = "sdpa", *, mrope: bool = False) -> LlamaConfig:
    config = small_text_config()
    if mrope:
        published = {"type": "mrope", "mrope_section": [2, 1, 1]}
        shape = {**config.to_dict(), "rope_parameters": None, "rope_scaling": published}
        config = LlamaConfig(**shape)
    config.num_hidden_layers = layers
    config._attn_implementation = attention
    return config


def randomise(module: nn.Module, seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            weight.copy_(centre + 0.12 * torch.randn(weight.shape, generator=generator))


# ---- EAGLE-1/2 and MSD


def small_eagle(
    layers: int = 1, *, fc_bias: bool = True, qkv_bias: bool = False, mrope: bool = False
) -> Eagle:
    config = small_config(layers, mrope=mrope)
    network = FeatureDraftNetwork(config, fc_bias=fc_bias, qkv_bias=qkv_bias).eval()
    head = nn.Linear(HIDDEN, VOCAB, bias=False)
    randomise(network)
    randomise(head, 6)
    return Eagle(network, head, IMAGE_TOKEN)


def dense_eagle(eagle: Eagle) -> LogProbs:
    """Eager attention over the whole path; predicted features stand in for those not yet known."""
    state = eagle.module.state_dict()
    network = FeatureDraftNetwork(
        small_config(len(eagle.module.layers), "eager", mrope=eagle.has_mrope),
        fc_bias="fc.bias" in state,
        qkv_bias="layers.0.self_attn.q_proj.bias" in state,
    ).eval()
    network.load_state_dict(state)

    def inputs(tokens: list[int], vectors: torch.Tensor, num_committed: int) -> torch.Tensor:
        ids = torch.tensor(tokens)
        fused = network.fuse(network.embed_tokens(ids), vectors)
        is_image = (ids == IMAGE_TOKEN) & (torch.arange(len(ids)) < num_committed)
        return torch.where(is_image.unsqueeze(1), vectors, fused)

    def log_probs(history: History, path: list[int]) -> torch.Tensor:
        tokens, vectors = list(history.tokens), history.vectors
        for token in [*path, None]:
            size = len(tokens)
            rows = inputs(tokens, vectors, len(history.tokens))
            positions = history.rope_positions(size)
            features = network(rows[None], positions, attention_mask=causal(size))[0]
            if token is None:
                break
            tokens.append(token)
            vectors = torch.cat((vectors, features[-1:]))
        return torch.log_softmax(eagle.head(features[-1]).float(), dim=-1)

    return log_probs


# ---- EAGLE-3


def small_eagle3() -> Eagle3:
    module = Eagle3Module(small_config(), HIDDEN, DRAFT_VOCAB).eval()
    randomise(module)
    kept = np.sort(np.random.default_rng(8).choice(VOCAB, DRAFT_VOCAB, replace=False))
    module.d2t.copy_(torch.from_numpy(kept - np.arange(DRAFT_VOCAB)))
    return Eagle3(module, target_layers=8)


def dense_eagle3(eagle: Eagle3) -> LogProbs:
    """Written out after the published wiring, with nothing of `Eagle3Layer`."""
    weights = eagle.module.state_dict()
    config = small_config(attention="eager")
    rotary = eagle.module.rotary_emb

    def norm(name: str, rows: torch.Tensor) -> torch.Tensor:
        scale = (rows.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt()
        return weights[f"{name}.weight"] * rows * scale

    def linear(name: str, rows: torch.Tensor) -> torch.Tensor:
        return rows @ weights[f"{name}.weight"].T

    def attend(rows: torch.Tensor) -> torch.Tensor:
        size, dim = len(rows), config.head_dim
        cos, sin = (part[0] for part in rotary(rows, torch.arange(size)[None]))
        heads = []
        for name in ("q_proj", "k_proj", "v_proj"):
            projected = linear(f"midlayer.self_attn.{name}", rows).view(size, -1, dim)
            heads.append(projected.transpose(0, 1))
        query, key, value = heads
        query, key = (part * cos + rotate_half(part) * sin for part in (query, key))
        groups = len(query) // len(key)
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        scores = query @ key.transpose(1, 2) / dim**0.5 + causal(size)[0]
        mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(size, -1)
        return linear("midlayer.self_attn.o_proj", mixed)

    def layer(embeds: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        both = (norm("midlayer.input_layernorm", embeds), norm("midlayer.hidden_norm", features))
        features = features + attend(torch.cat(both, -1))
        rows = norm("midlayer.post_attention_layernorm", features)
        gate = nn.functional.silu(linear("midlayer.mlp.gate_proj", rows))
        up = linear("midlayer.mlp.up_proj", rows)
        return features + linear("midlayer.mlp.down_proj", gate * up)

    def log_probs(history: History, path: list[int]) -> torch.Tensor:
        tokens, features = list(history.tokens), linear("fc", history.vectors)
        for token in [*path, None]:
            after = layer(weights["embed_tokens.weight"][tokens], features)
            if token is None:
                break
            tokens.append(token)
            features = torch.cat((features, after[-1:]))
        logits = linear("lm_head", norm("norm", after[-1:]))[0]
        spread = torch.full((VOCAB,), -torch.inf)
        spread[torch.arange(DRAFT_VOCAB) + weights["d2t"]] = torch.log_softmax(logits, -1)
        return spread

    return log_probs


# ---- whole language models


def small_draft_model(folder: Path, *, sees_images: bool) -> DraftModel:
    model = load_target(folder, torch.float32, "cpu")
    return DraftModel(model, VOCAB, IMAGE_TOKEN, sees_images=sees_images)


def dense_draft_model(folder: Path, *, sees_images: bool) -> LogProbs:
    """transformers' own forward; without `sees_images` of the text alone."""
    is_multimodal = AutoConfig.from_pretrained(folder).model_type != "llama"
    loader = AutoModelForImageTextToText if is_multimodal else AutoModelForCausalLM
    model: PreTrainedModel = loader.from_pretrained(folder).eval()

    def log_probs(history: History, path: list[int]) -> torch.Tensor:
        tokens = history.tokens
        if not sees_images:
            tokens = [token for token in tokens if token != IMAGE_TOKEN]
        ids = torch.tensor([*tokens, *path])
        embeds = model.get_input_embeddings()(ids)
        if sees_images:
            is_image = (ids == IMAGE_TOKEN) & (torch.arange(len(ids)) < len(tokens))
            embeds[is_image] = history.vectors
        positions = history.rope_positions(len(ids))
        logits = model(inputs_embeds=embeds[None], position_ids=positions).logits[0, -1]
        return torch.log_softmax(logits.float(), dim=-1)

    return log_probs


def causal(size: int) -> torch.Tensor:
    return torch.full((size, size), -torch.inf).triu(1)[None, None]


def rotate_half(rows: torch.Tensor) -> torch.Tensor:
    left, right = rows.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)
