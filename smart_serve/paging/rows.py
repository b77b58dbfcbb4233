"""Rows of one forward: ragged queries of many sequences, and how they stand when packed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from smart_serve.models.attention_step import AttentionStep

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Query rows of one sequence: what they are, and which of each other they may see."""

    blocks: list[int]
    num_committed: int
    token_ids: Ints  # [n]
    positions: Ints  # [n] RoPE positions (tree nodes: committed + depth); [3, n] under M-RoPE
    visible: NDArray[np.bool_]
    """[n, m + n]: what each row sees beyond the committed tokens, all of which it sees: first m
    rows of earlier passes over the same tree, then the rows of this pass."""

    @property
    def num_slots(self) -> int:
        """Cache positions in use once these rows are written."""
        return self.num_committed + int(self.visible.shape[1])

    @property
    def slot_positions(self) -> Ints:
        """Where the rows' keys and values go: one after another, whatever their depth. [n]"""
        return self.num_slots - len(self.token_ids) + np.arange(len(self.token_ids))


@dataclass(frozen=True, slots=True)
class PackedStep:
    """One forward pass, ready for the device."""

    token_ids: torch.Tensor  # [N]
    positions: torch.Tensor  # [N], or [3, N] under M-RoPE
    attention: AttentionStep
    first_rows: Ints  # [num_sequences + 1] rows of sequence i: first_rows[i] .. first_rows[i + 1]
