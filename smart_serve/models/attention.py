"""How transformers' own modules reach our paged cache: a registered attention function.

A model whose config names `ATTENTION` runs unmodified on packed rows [1, N]: every attention layer
hands its queries, keys and values to `packed_attention`, which writes the cache and attends under
the step's tree masks. The step's metadata travels as the keyword `step` through the forward call,
so that nothing is global.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AttentionInterface

from kernels.kv_write import kv_write
from kernels.tree_attention import AttentionGroup, RaggedAttention, tree_attention

ATTENTION = "smart_serve_packed"


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """Where the rows of one forward stand in the cache, and what they may see."""

    key_caches: Sequence[torch.Tensor]  # per layer [blocks, block_tokens, H_kv, D]
    value_caches: Sequence[torch.Tensor]
    slots: torch.Tensor  # [N] where each row's key and value go
    rows: tuple[AttentionGroup, ...] | RaggedAttention


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    step: AttentionStep,
    **_unused: object,  # transformers passes what other implementations need (dropout, …)
) -> tuple[torch.Tensor, None]:
    """query [1, H, N, D], key and value [1, H_kv, N, D] -> ([1, N, H, D], None)."""
    layer = module.layer_idx
    assert isinstance(layer, int)
    keys, values = step.key_caches[layer], step.value_caches[layer]
    kv_write(keys, values, key[0].transpose(0, 1), value[0].transpose(0, 1), step.slots)
    queries = query[0].transpose(0, 1)
    return tree_attention(queries, keys, values, step.rows, scaling).unsqueeze(0), None


# Without a mask function beside it transformers builds none: the masks travel with the step.
AttentionInterface.register(ATTENTION, packed_attention)
