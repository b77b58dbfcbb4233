"""Sizes of the simulated targets and of their EAGLE-style drafters."""

from __future__ import annotations

from dataclasses import dataclass

WEIGHT_BYTES = 2
"""bfloat16, for weights and KV cache alike."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama-like decoder, and a drafter of one such layer under the same head (EAGLE, MSD)."""

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    mlp_size: int
    vocab_size: int
    context: int
    """Committed tokens of a typical sequence: what `--context` is where it is not given."""
    of_layers: int | None = None
    """Of the model itself, where these are a sample of its layers."""

    @property
    def layer_params(self) -> int:
        kv_size = self.hidden_size // self.num_heads * self.num_kv_heads
        attention = 2 * self.hidden_size * (self.hidden_size + kv_size)
        return attention + 3 * self.hidden_size * self.mlp_size

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def head_params(self) -> int:
        return self.hidden_size * self.vocab_size

    @property
    def target_params(self) -> int:
        """Read in every step; the embedding is a look-up."""
        return self.num_layers * self.layer_params + self.head_params

    @property
    def draft_params(self) -> int:
        """Besides the head: one layer and the joint of embedding and feature (2h → h)."""
        return self.layer_params + 2 * self.hidden_size**2

    @property
    def kv_bytes_per_layer(self) -> int:
        """Of one token."""
        return 2 * self.head_dim * self.num_kv_heads * WEIGHT_BYTES


# From the models' config.json. LLaVA's context holds its 576 image tokens.
SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("llama-3.1-8b", 32, 4096, 32, 8, 14336, 128256, context=512),
        ModelShape("llava-1.5-7b", 32, 4096, 32, 32, 11008, 32064, context=704),
        ModelShape("llava-1.5-13b", 40, 5120, 40, 40, 13824, 32064, context=704),
        # As a Llama: without M-RoPE, and without the biases of its projections.
        ModelShape("qwen2-vl-7b", 28, 3584, 28, 4, 18944, 152064, context=704),
        # As many as fit on one device beside a KV cache; the head is whole.
        ModelShape(
            "llama-3.3-70b-layer-sample", 8, 8192, 64, 8, 28672, 128256, context=512, of_layers=80
        ),
    )
}
