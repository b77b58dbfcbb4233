"""What a forward needs to know of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.tree_attention import AttentionGroup, RaggedAttention


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """Where the rows of one forward stand in the cache, and what they may see."""

    key_caches: Sequence[torch.Tensor]  # per layer [blocks, block_tokens, H_kv, D]
    value_caches: Sequence[torch.Tensor]
    slots: torch.Tensor  # [N] where each row's key and value go
    rows: tuple[AttentionGroup, ...] | RaggedAttention
