"""Attention of packed ragged queries over a paged cache, under the trees' ancestor masks.

    out[n] = Σ_s softmax_s(scale · q[n]·k[s] + mask[n, s]) · v[s]

where s runs over the cached tokens of n's own sequence: all committed ones, and of this step's own
tokens the ancestors of n and n itself (mask 0; elsewhere −inf).

On a CPU the queries come in padded groups with dense masks, for dense matrix products are what it
is good at; on a GPU they come ragged, with one bit per pair of tree tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sequences whose queries are padded to one length and attended together."""

    block_tables: torch.Tensor  # [G, blocks] int64, padded with any valid block
    mask: torch.Tensor  # [G, 1, Q, blocks * block_tokens] additive: 0 or -inf
    first_row: int  # the group owns packed rows first_row .. first_row + num_rows - 1
    num_rows: int
    padded_rows: torch.Tensor | None  # [G * Q] packed row of each padded query; None: no padding
    real_queries: torch.Tensor | None  # [num_rows] index of each packed row among the padded ones
    run: range | None = None
    """Blocks of a single sequence, where they lie one after another: they are read in place, to the
    last bit as if they had been copied."""


@dataclass(frozen=True, slots=True)
class RaggedAttention:
    """All rows of a step as they are packed, for the GPU; int64 throughout."""

    tiles: torch.Tensor  # [T, 2] sequence, first row: the next TILE_ROWS rows, up to its end
    sequences: torch.Tensor  # [B, 4] end row, committed slots, slots in all, start in `blocks`
    blocks: torch.Tensor  # [.] the sequences' block tables one after another
    prefixes: torch.Tensor  # [N] how many of its sequence's slots a row sees without a gap
    ancestors: torch.Tensor  # [N, W] bit j % 64 of word j // 64: it sees slot committed + j
    max_slots: int
    """No sequence has more slots than that."""


TILE_ROWS = 16
"""Query rows of one tile: what a tensor core multiplies at once."""


def tree_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    rows: Sequence[AttentionGroup] | RaggedAttention,
    scale: float,
) -> torch.Tensor:
    """Attention output [N, H, D] of queries [N, H, D]; caches [blocks, block_tokens, H_kv, D].

    The step's own keys and values are in the cache already. Ragged rows need a GPU.
    """
    if isinstance(rows, RaggedAttention):
        from kernels.gpu.tree_attention import attend

        tables = (rows.tiles, rows.sequences, rows.blocks, rows.prefixes, rows.ancestors)
        return attend(
            query,
            key_cache,
            value_cache,
            tables,
            tile_rows=TILE_ROWS,
            max_slots=rows.max_slots,
            scale=scale,
        )
    outputs = [_attend(query, key_cache, value_cache, group, scale) for group in rows]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    group: AttentionGroup,
    scale: float,
) -> torch.Tensor:
    num_sequences, num_heads, head_dim = len(group.block_tables), query.shape[1], query.shape[2]
    if group.padded_rows is None:
        rows = query[group.first_row : group.first_row + group.num_rows]
    else:
        rows = query.index_select(0, group.padded_rows)
    padded = rows.view(num_sequences, -1, num_heads, head_dim).transpose(1, 2)
    grouped = num_heads != key_cache.shape[2]
    attended = F.scaled_dot_product_attention(
        padded,
        _keys(key_cache, group),
        _keys(value_cache, group),
        attn_mask=group.mask,
        scale=scale,
        enable_gqa=grouped,
    )
    flat = attended.transpose(1, 2).reshape(-1, num_heads, head_dim)
    return flat if group.real_queries is None else flat.index_select(0, group.real_queries)


def _keys(cache: torch.Tensor, group: AttentionGroup) -> torch.Tensor:
    """[G, H_kv, K, D], without a copy where that can be; else whole blocks, since long copies are
    the fast ones."""
    if group.run is not None:
        blocks = cache[group.run.start : group.run.stop]
    else:
        blocks = cache.index_select(0, group.block_tables.view(-1))
    num_sequences, num_blocks = group.block_tables.shape
    tokens = blocks.view(num_sequences, num_blocks * cache.shape[1], *cache.shape[2:])
    return tokens.transpose(1, 2)
