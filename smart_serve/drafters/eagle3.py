"""EAGLE-3 drafters (arXiv 2503.01840), wired as the published checkpoints are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
)

from smart_serve.drafters.feature_network import is_mrope, rotary_embedding
from smart_serve.drafters.network import DraftNetwork
from smart_serve.drafters.protocol import DraftInput
from smart_serve.models.decoder import Attention, GatedMlp, RmsNorm
from smart_serve.models.rotary import RotaryEmbedding
from smart_serve.models.target import kv_shape
from smart_serve.paging.rows import Ints, PackedStep


def capture_layers(num_layers: int) -> tuple[int, int, int]:
    """Layers of the target whose inputs EAGLE-3 reads: low, middle and high.

    2, n // 2 and n - 3 of n layers, as published; in targets too small for that (six layers or
    fewer, which only tests have) kept within the model and in order.
    """
    last = num_layers - 1
    low, middle, high = sorted(
        min(max(layer, 0), last) for layer in (2, num_layers // 2, num_layers - 3)
    )
    return low, middle, high


class Eagle3Module(nn.Module):
    """The weights, named as published: ``fc``, ``midlayer.*``, ``norm``, ``lm_head``.

    ``d2t`` holds the target's id of each draft token minus the draft's own.
    """

    def __init__(
        self,
        config: LlamaConfig,
        target_hidden_size: int,
        draft_vocab_size: int,
        *,
        maps_vocabulary: bool = True,
    ) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden)
        self.fc = nn.Linear(3 * target_hidden_size, hidden, bias=False)
        self.midlayer = Eagle3Layer(config)
        self.norm = LlamaRMSNorm(hidden, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(hidden, draft_vocab_size, bias=False)
        self.rotary_emb = rotary_embedding(config)
        self.d2t: torch.Tensor
        self.register_buffer(
            "d2t", torch.zeros(draft_vocab_size, dtype=torch.int64), maps_vocabulary
        )


class Eagle3Layer(nn.Module):
    """A decoder layer whose attention reads [norm(embedding), norm(feature)] side by side.

    The feature, before its norm, is the residual stream.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = LlamaAttention(config, layer_idx=0)
        for name in ("q_proj", "k_proj", "v_proj"):
            size = getattr(self.self_attn, name).out_features
            self.self_attn.add_module(name, nn.Linear(2 * hidden, size, config.attention_bias))
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(hidden, eps=eps)
        self.hidden_norm = LlamaRMSNorm(hidden, eps=eps)
        self.post_attention_layernorm = LlamaRMSNorm(hidden, eps=eps)


class Eagle3(DraftNetwork):
    """Reads three of the target's hidden states, and from then on its own features."""

    kind = "eagle3"
    vectors = "layers"
    target_ids: Ints

    def __init__(self, module: Eagle3Module, target_layers: int) -> None:
        self.module = module
        layer = module.midlayer
        self._attention, self._mlp = Attention.of(layer.self_attn), GatedMlp.of(layer.mlp)
        self._embed_norm = RmsNorm.of(layer.input_layernorm)
        self._feature_norm = RmsNorm.of(layer.hidden_norm)
        self._mlp_norm = RmsNorm.of(layer.post_attention_layernorm)
        self._norm = RmsNorm.of(module.norm)
        self._rotary = RotaryEmbedding(module.rotary_emb)
        self.vector_size = module.fc.in_features
        self.capture_layers = capture_layers(target_layers)
        self.has_mrope = is_mrope(module.config)
        self.kv_shape = kv_shape(module.config)
        self.num_embeddings = module.embed_tokens.num_embeddings
        own_ids = torch.arange(len(module.d2t))
        self.target_ids = (own_ids + module.d2t.cpu()).numpy()

    @property
    def weight(self) -> torch.Tensor:
        return self.module.lm_head.weight

    @property
    def input_size(self) -> int:
        return 2 * self.module.fc.out_features

    @property
    def body_weights(self) -> int:
        # Nodes do not pass fc: their parents' features are the network's own.
        return self._attention.num_weights + self._mlp.num_weights

    @property
    def head_weights(self) -> int:
        return self.module.lm_head.weight.numel()

    def committed_inputs(
        self, token_ids: torch.Tensor, inputs: Sequence[DraftInput]
    ) -> torch.Tensor:
        vectors = torch.cat([item.vectors for item in inputs if item.vectors is not None])
        return self.node_inputs(token_ids, self.module.fc(vectors.to(self.weight)))

    def node_inputs(self, token_ids: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.module.embed_tokens(token_ids), parents), dim=-1)

    def forward(self, inputs: torch.Tensor, step: PackedStep) -> torch.Tensor:
        embeds, features = inputs.chunk(2, dim=-1)
        both = torch.cat((self._embed_norm(embeds), self._feature_norm(features)), dim=-1)
        rotation = self._rotary(step.positions, inputs.dtype)
        features = features + self._attention(both, rotation, step.attention)
        return features + self._mlp(self._mlp_norm(features))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.module.lm_head(self._norm(features))
        return scores
