"""Tensors of a small model in those of a big one, function and all.

What makes the function the same (n, N: hidden sizes; all beyond the first n channels is padding):

- Nothing writes to the padding of the residual stream, so it stays zero: a norm's mean of squares
  becomes n/N of what it was, and its weights and ε make up for it (√(n/N), n/N).
- One channel of the padding is the exception, a constant too small to count in any mean. By it the
  head gives tokens that the bundled vocabulary lacks a score that no token is drawn with.
- Weights that meet only zeros are random: a processor's power depends on what it multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from smart_serve.bench.simulator.shapes import ModelShape
from smart_serve.checkpoint import Checkpoint
from smart_serve.errors import ConfigError

CONSTANT = 2.0**-14
"""Its square is 2⁻²⁸: less than float32 resolves beside the squares of any embedding."""
NEVER = -(2.0**34)
"""Times the constant, normed by up to 2⁸: a score of -2¹² at most, whose probability is zero."""
_NOISE_STD = 0.02
"""As models of this kind are initialised (their `initializer_range`)."""
_NOISE_ITEMS = 2**22
MAX_POSITIONS = 8192
"""More than any context that is measured; these models' RoPE does not depend on it."""


class Widening:
    """Of the tensors of one checkpoint."""

    def __init__(self, text: dict[str, Any], shape: ModelShape, dtype: torch.dtype) -> None:
        """`text`: the language model's configuration."""
        self._text, self._shape, self._dtype = text, shape, dtype
        heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
        head_dim = text.get("head_dim") or text["hidden_size"] // heads
        group, wide_group = heads // kv_heads, shape.num_heads // shape.num_kv_heads
        fits = (
            text["hidden_size"] < shape.hidden_size
            and text["intermediate_size"] <= shape.mlp_size
            and text["vocab_size"] <= shape.vocab_size
            and text["num_hidden_layers"] <= shape.num_layers
            and kv_heads <= shape.num_kv_heads
            and group <= wide_group
        )
        if not fits:
            raise ConfigError("the model does not fit into this shape")
        self._ratio = text["hidden_size"] / shape.hidden_size
        self._constant: int = text["hidden_size"]  # the first channel of the padding
        # Where each side of a matrix begins, and how long it becomes: channels by channel, heads
        # with those that share their keys.
        places = [one // group * wide_group + one % group for one in range(heads)]
        self._hidden = _Side(torch.arange(text["hidden_size"]), shape.hidden_size)
        self._inner = _Side(torch.arange(text["intermediate_size"]), shape.mlp_size)
        self._queries = _Side.of_heads(places, head_dim, shape.num_heads)
        self._keys = _Side.of_heads(range(kv_heads), head_dim, shape.num_kv_heads)
        self._attending = _Side.of_heads(range(kv_heads * wide_group), head_dim, shape.num_heads)
        self._vocabulary = _Side(torch.arange(text["vocab_size"]), shape.vocab_size)
        both = torch.arange(text["hidden_size"])
        self._fused = _Side(torch.cat([both, both + shape.hidden_size]), 2 * shape.hidden_size)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(_NOISE_ITEMS, generator=generator) * _NOISE_STD
        self._noise = noise.to(dtype)

    def config(self, num_layers: int) -> dict[str, Any]:
        shape = self._shape
        return {
            **self._text,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.mlp_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "vocab_size": shape.vocab_size,
            "max_position_embeddings": MAX_POSITIONS,
            "rms_norm_eps": self._text["rms_norm_eps"] * self._ratio,
        }

    def tensors(self, source: Checkpoint, num_layers: int) -> Iterator[tuple[str, torch.Tensor]]:
        """All, by name; those of added layers last."""
        narrow = source.tensors({"": ""})
        for name, tensor in narrow.items():
            yield name, self._wide(name, tensor.float()).to(self._dtype)
        own_layers = self._text["num_hidden_layers"]
        first = {name: one for name, one in narrow.items() if "model.layers.0." in name}
        for layer in range(own_layers, num_layers):
            for name, tensor in first.items():
                # Values and up projection of zeros: it adds nothing to the stream.
                is_norm = name.endswith("norm.weight")
                empty = (torch.ones if is_norm else torch.zeros)(tensor.shape)
                added = name.replace(".0.", f".{layer}.")
                yield added, self._wide(name, empty).to(self._dtype)

    def _wide(self, name: str, narrow: torch.Tensor) -> torch.Tensor:
        if name.startswith("vision_tower."):
            return narrow
        match name.split(".")[-2:]:
            case [part, "weight"] if part.endswith("norm"):
                return self._norm(narrow)
            case ["q_proj", _]:
                return self._matrix(narrow, self._queries, self._hidden, is_unread=True)
            case ["k_proj", _]:
                return self._matrix(narrow, self._keys, self._hidden, is_unread=True)
            case ["v_proj", _]:
                return self._matrix(narrow, self._keys, self._hidden)
            case ["o_proj", _]:
                return self._output(narrow)
            case ["gate_proj", _]:
                return self._matrix(narrow, self._inner, self._hidden, is_unread=True)
            case ["up_proj", _]:
                return self._matrix(narrow, self._inner, self._hidden)
            case ["down_proj", _]:
                return self._matrix(narrow, self._hidden, self._inner)
            case ["embed_tokens", _]:
                return self._embeddings(narrow)
            case ["lm_head", _]:
                return self._head(narrow)
            case ["fc", "weight"]:
                return self._fuse(narrow)
            case ["linear_1", "weight"]:
                return self._matrix(narrow, self._hidden, _Side.same(narrow.shape[1]))
            case ["linear_2", "weight"]:
                return self._matrix(narrow, self._hidden, self._hidden)
            case ["linear_2", "bias"]:
                return self._bias(narrow, CONSTANT)
            case ["fc" | "linear_1", "bias"]:
                return self._bias(narrow, 0.0)
        raise ConfigError(f"tensor '{name}' cannot be widened")

    def _matrix(
        self, narrow: torch.Tensor, out: _Side, into: _Side, *, is_unread: bool = False
    ) -> torch.Tensor:
        """`is_unread`: what the added outputs give makes no difference."""
        shape = (out.size, into.size)
        wide = self._random(shape)
        if not is_unread:
            wide[:, into.places] = 0.0
        wide[out.places[:, None], into.places] = narrow.to(self._dtype)
        if into is self._hidden or into is self._fused:
            wide[:, self._constant :: self._shape.hidden_size] = 0.0
        return wide

    def _output(self, narrow: torch.Tensor) -> torch.Tensor:
        """Added heads that share the values of others do give something, and are not read."""
        attending = torch.zeros(len(narrow), len(self._attending.places))
        attending[:, self._queries.places] = narrow
        return self._matrix(attending, self._hidden, self._attending)

    def _random(self, shape: tuple[int, int]) -> torch.Tensor:
        items = shape[0] * shape[1]
        return self._noise.repeat(items // _NOISE_ITEMS + 1)[:items].view(shape)

    def _norm(self, narrow: torch.Tensor) -> torch.Tensor:
        wide = torch.ones(self._shape.hidden_size)
        wide[self._hidden.places] = narrow * self._ratio**0.5
        return wide

    def _bias(self, narrow: torch.Tensor, constant: float) -> torch.Tensor:
        wide = torch.zeros(self._shape.hidden_size)
        wide[self._hidden.places] = narrow
        wide[self._constant] = constant
        return wide

    def _embeddings(self, narrow: torch.Tensor) -> torch.Tensor:
        wide = torch.zeros(self._shape.vocab_size, self._shape.hidden_size, dtype=self._dtype)
        wide[: len(narrow), : narrow.shape[1]] = narrow.to(self._dtype)
        wide[:, self._constant] = CONSTANT
        return wide

    def _head(self, narrow: torch.Tensor) -> torch.Tensor:
        wide = self._matrix(narrow, self._vocabulary, self._hidden)
        wide[len(narrow) :, self._constant] = NEVER
        return wide

    def _fuse(self, narrow: torch.Tensor) -> torch.Tensor:
        """The embedding's constant goes on to the drafter's own stream."""
        wide = self._matrix(narrow, self._hidden, self._fused)
        wide[self._constant, self._constant] = 1.0
        return wide


@dataclass(frozen=True, slots=True)
class _Side:
    """Of a matrix: where the narrow one's rows (or columns) stand in the wide one, of `size`."""

    places: torch.Tensor
    size: int

    @classmethod
    def of_heads(cls, heads: Sequence[int], head_dim: int, num_heads: int) -> _Side:
        starts = torch.tensor(heads)[:, None] * head_dim
        return cls((starts + torch.arange(head_dim)).flatten(), num_heads * head_dim)

    @classmethod
    def same(cls, size: int) -> _Side:
        return cls(torch.arange(size), size)
