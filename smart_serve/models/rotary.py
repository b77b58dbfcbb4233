"""Rotary position embedding of packed rows (RoFormer, arXiv 2104.09864), on one axis or three."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Rotation:
    """How far each row's heads turn; made once a step, for all layers."""

    cos: torch.Tensor  # [N, 1, D]
    sin: torch.Tensor  # [N, 1, D], its first half negated

    def turn(self, heads: torch.Tensor) -> torch.Tensor:
        """heads [N, H, D], a new tensor.

            (x₁, x₂) -> (x₁·cos − x₂·sin, x₂·cos + x₁·sin)

        with x₁, x₂ the halves of a head; the minus is in `sin` already.
        """
        swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
        return torch.addcmul(heads * self.cos, swapped, self.sin)


class RotaryEmbedding:
    """From positions to rotations, with the frequencies of a transformers module.

    Under M-RoPE (Qwen2-VL, arXiv 2409.12191) each frequency reads one of three axes.
    """

    def __init__(self, stock: Any) -> None:
        """`stock`: `LlamaRotaryEmbedding`, `Qwen2VLRotaryEmbedding` or alike, on its device."""
        frequencies: torch.Tensor = stock.inv_freq
        # cos is even and sin is odd: the sign that a turn needs comes with the angle.
        self._signed = torch.cat((-frequencies, frequencies))
        self._scaling: float = stock.attention_scaling
        self._axes: torch.Tensor | None = None
        if sections := getattr(stock, "mrope_section", None):
            axes = [i % 3 for i, width in enumerate(sections) for _ in range(width)]
            self._axes = torch.tensor(axes * 2, device=frequencies.device)

    def __call__(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """Of rows at `positions` [N] (the same on all axes), or [3, N] under M-RoPE."""
        places = positions.to(self._signed.dtype)
        if self._axes is None or places.dim() == 1:
            angles = places.unsqueeze(-1) * self._signed
        else:
            angles = places.index_select(0, self._axes).T * self._signed
        cos, sin = angles.cos(), angles.sin()
        if self._scaling != 1.0:  # YaRN's
            cos, sin = cos * self._scaling, sin * self._scaling
        return Rotation(cos.to(dtype).unsqueeze(1), sin.to(dtype).unsqueeze(1))
