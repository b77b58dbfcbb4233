"""The target's language model over packed rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from smart_serve.checkpoint import read_json
from smart_serve.errors import ConfigError
from smart_serve.messages import ImageSpan
from smart_serve.models.attention_step import AttentionStep
from smart_serve.models.decoder import DecoderLayer, RmsNorm
from smart_serve.models.rope import RopePositions
from smart_serve.models.rotary import RotaryEmbedding

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""RoPE scalings whose frequencies do not depend on what else is in the batch."""
_SHAPE = (
    *("hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)


@dataclass(frozen=True, slots=True)
class KvShape:
    """Shape of one token's keys (and of its values) in every layer."""

    num_layers: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Hidden:
    """What a forward pass leaves behind, per packed row."""

    last: torch.Tensor
    """[N, h] after the final norm: the head's input."""
    features: torch.Tensor
    """[N, F] what drafters see: `last`, or the inputs of the captured layers side by side."""


class TargetModel:
    """Token ids and features in, hidden states and logits out; keeps no state of any sequence."""

    def __init__(
        self,
        body: PreTrainedModel,
        head: nn.Linear,
        *,
        image_token_id: int | None,
        eos_token_ids: frozenset[int],
        has_mrope: bool = False,
    ) -> None:
        """`body` and `head`: a causal model of transformers, whose weights stay in place."""
        self._embedding: nn.Embedding = body.get_input_embeddings()
        self._layers = [DecoderLayer.of(layer) for layer in body.layers]
        self._norm = RmsNorm.of(body.norm)
        self._rotary = RotaryEmbedding(body.rotary_emb)
        self._head = head
        config: PretrainedConfig = body.config
        self.image_token_id = image_token_id
        self.eos_token_ids = eos_token_ids
        self.has_mrope = has_mrope
        """Positions have three axes, and pictures need their grids."""
        self.vocab_size: int = head.out_features
        self.hidden_size: int = config.hidden_size
        self.max_context: int = config.max_position_embeddings
        self.kv_shape = kv_shape(config)
        self.dtype: torch.dtype = head.weight.dtype
        self.device: torch.device = head.weight.device
        self.captured_layers: tuple[int, ...] = ()
        """See `capture`."""
        self.shape = {name: getattr(config, name) for name in _SHAPE} | {
            "head_dim": self.kv_shape.head_dim,
            "vocab_size": self.vocab_size,
            "has_mrope": has_mrope,
        }
        """What the cost of a pass depends on."""

    @property
    def body_weights(self) -> int:
        """Of the matrices that every row of a step passes; the embedding is a look-up."""
        return sum(layer.num_weights for layer in self._layers)

    @property
    def head_weights(self) -> int:
        """Of the head, which only rows pass whose logits are wanted."""
        return self._head.weight.numel()

    def capture(self, layers: tuple[int, ...]) -> bool:
        """From now on features are the hidden states that enter `layers` (EAGLE-3's), side by side;
        with none, the last hidden state. Returns whether that is a change."""
        is_change = layers != self.captured_layers
        self.captured_layers = layers
        return is_change

    def rope_positions(self, spans: Sequence[ImageSpan]) -> RopePositions | None:
        """Positions of a prompt with these pictures; None: a token's index is its position."""
        return RopePositions(spans) if self.has_mrope else None

    def embed(
        self, token_ids: torch.Tensor, image_rows: Mapping[int, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Input embeddings [N, h] of token ids [N]; `image_rows` maps a first row to the features
        [n, h] that stand there in place of n image tokens."""
        embeds: torch.Tensor = self._embedding(token_ids)
        for first, features in (image_rows or {}).items():
            embeds[first : first + len(features)] = features.to(embeds)
        return embeds

    def forward(self, embeds: torch.Tensor, positions: torch.Tensor, step: AttentionStep) -> Hidden:
        """Of packed rows [N, h]; `positions`: [N], or [3, N] under M-RoPE."""
        rotation = self._rotary(positions, self.dtype)
        hidden, captured = embeds, []
        for index, layer in enumerate(self._layers):
            captured.extend([hidden] * self.captured_layers.count(index))
            hidden = layer(hidden, rotation, step)
        last = self._norm(hidden)
        return Hidden(last, torch.cat(captured, dim=-1) if captured else last)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, V] from [R, h]."""
        scores: torch.Tensor = self._head(hidden)
        return scores


def kv_shape(config: PretrainedConfig) -> KvShape:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return KvShape(config.num_hidden_layers, config.num_key_value_heads, head_dim)


def check_rope(config: PretrainedConfig) -> None:
    """ConfigError for a RoPE scaling that would make answers depend on the batch."""
    rope_type = config.rope_parameters.get("rope_type", "default")
    if rope_type not in _ROPE_TYPES:
        raise ConfigError(f"RoPE of type '{rope_type}' is not supported ({', '.join(_ROPE_TYPES)})")


def eos_token_ids(folder: Path, text_config: PretrainedConfig) -> frozenset[int]:
    """Tokens that end an answer: generation_config.json's, else the model config's."""
    path = folder / "generation_config.json"
    ids = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = text_config.eos_token_id if ids is None else ids
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list) else [ids])
