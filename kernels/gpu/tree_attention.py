"""Tree attention over a paged cache in one pass: softmax kept online, long contexts split.

A program takes a tile of query rows of one sequence with all query heads that share one key head,
and one stretch of that sequence's slots. With more than one stretch, each leaves its normalised
output and the log2 of its softmax denominator, and a second kernel joins them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

TARGET_PROGRAMS = 512
"""Programs that fill a large GPU (132 SMs, about four each): contexts are split up to it."""
MAX_SPLITS = 16
MIN_SPLIT_SLOTS = 256
"""A shorter stretch costs more to join than it saves."""
_LOG2_E = math.log2(math.e)


@triton.jit
def attend_tiles(
    query, keys, values, out, log_sums,
    tiles, sequences, blocks, prefixes, ancestors,
    num_rows, scale_log2, query_row_stride, query_head_stride,
    WORDS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIM_PADDED: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_SLOTS: tl.constexpr, SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, first_row = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    end_row = tl.load(sequences + 4 * sequence)
    committed = tl.load(sequences + 4 * sequence + 1)
    num_slots = tl.load(sequences + 4 * sequence + 2)
    table = blocks + tl.load(sequences + 4 * sequence + 3)
    if first_row >= end_row:
        return

    lane = tl.arange(0, TILE_ROWS * GROUP_PADDED)
    row = first_row + lane // GROUP_PADDED
    head = kv_head * GROUP + lane % GROUP_PADDED
    is_real = (row < end_row) & (lane % GROUP_PADDED < GROUP)
    dim = tl.arange(0, DIM_PADDED)
    in_dim = dim < HEAD_DIM
    q = tl.load(
        query + row[:, None] * query_row_stride + head[:, None] * query_head_stride + dim[None, :],
        mask=is_real[:, None] & in_dim[None, :],
        other=0.0,
    )
    prefix = tl.load(prefixes + row, mask=is_real, other=0)

    stretch = tl.cdiv(tl.cdiv(num_slots, SPLITS), TILE_SLOTS) * TILE_SLOTS
    begin = split * stretch
    end = tl.minimum(begin + stretch, num_slots)
    top = tl.full([TILE_ROWS * GROUP_PADDED], float("-inf"), tl.float32)
    total = tl.zeros([TILE_ROWS * GROUP_PADDED], tl.float32)
    acc = tl.zeros([TILE_ROWS * GROUP_PADDED, DIM_PADDED], tl.float32)
    for start in range(begin, end, TILE_SLOTS):
        slot = start + tl.arange(0, TILE_SLOTS)
        in_stretch = slot < end
        block = tl.load(table + slot // BLOCK_TOKENS, mask=in_stretch, other=0)
        place = (block * BLOCK_TOKENS + slot % BLOCK_TOKENS) * KV_HEADS + kv_head
        offsets = place[:, None] * HEAD_DIM + dim[None, :]
        inside = in_stretch[:, None] & in_dim[None, :]
        k = tl.load(keys + offsets, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        visible = slot[None, :] < prefix[:, None]
        if start + TILE_SLOTS > committed:
            ahead = slot - committed
            has_bit = in_stretch & (ahead >= 0) & (ahead < 64 * WORDS)
            word = tl.load(
                ancestors + row[:, None] * WORDS + (ahead // 64)[None, :],
                mask=is_real[:, None] & has_bit[None, :],
                other=0,
            )
            visible = visible | (((word >> (ahead % 64)[None, :]) & 1) != 0)
        scores = tl.where(visible & in_stretch[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # A row that has seen nothing yet keeps top = -inf; -inf - -inf would be NaN.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(top - base)
        total = total * decay + tl.sum(weights, 1)
        v = tl.load(values + offsets, mask=inside, other=0.0)
        acc = acc * decay[:, None]
        acc += tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        top = new_top

    saw_any = total > 0.0
    result = acc / tl.where(saw_any, total, 1.0)[:, None]
    place = (split * num_rows + row) * (KV_HEADS * GROUP) + head
    tl.store(
        out + place[:, None] * HEAD_DIM + dim[None, :],
        result.to(out.dtype.element_ty),
        mask=is_real[:, None] & in_dim[None, :],
    )
    if SPLITS > 1:
        log_sum = tl.where(saw_any, top + tl.log2(tl.where(saw_any, total, 1.0)), float("-inf"))
        tl.store(log_sums + place, log_sum, mask=is_real)


@triton.jit
def join_splits(
    parts, log_sums, out, num_places,
    HEAD_DIM: tl.constexpr, DIM_PADDED: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One program per (row, head): Σ_i 2^(s_i - max) · part_i / Σ_i 2^(s_i - max)."""
    place = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    dim = tl.arange(0, DIM_PADDED)
    sums = tl.load(log_sums + split * num_places + place)
    top = tl.max(sums, 0)
    weights = tl.exp2(sums - tl.where(top == float("-inf"), 0.0, top))
    offsets = (split[:, None] * num_places + place) * HEAD_DIM + dim[None, :]
    in_dim = dim < HEAD_DIM
    part = tl.load(parts + offsets, mask=in_dim[None, :], other=0.0)
    total = tl.sum(weights, 0)
    joined = tl.sum(weights[:, None] * part, 0) / tl.where(total > 0.0, total, 1.0)
    tl.store(out + place * HEAD_DIM + dim, joined.to(out.dtype.element_ty), mask=in_dim)


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    tables: tuple[torch.Tensor, ...],
    *,
    tile_rows: int,
    max_slots: int,
    scale: float,
) -> torch.Tensor:
    """Output [N, H, D] of queries [N, H, D] (any strides but in D); caches [blocks, block_tokens,
    H_kv, D]. `tables`: tiles, sequences, blocks, prefixes, ancestors (see `RaggedAttention`)."""
    num_rows, heads, dim = query.shape
    _, block_tokens, kv_heads, _ = key_cache.shape
    tiles, ancestors = tables[0], tables[4]
    assert query.stride(2) == 1
    splits = num_splits(len(tiles) * kv_heads, max_slots)
    out = query.new_empty(num_rows, heads, dim)
    parts, log_sums = out, out  # unused where nothing is split
    if splits > 1:
        parts = query.new_empty(splits, num_rows, heads, dim, dtype=torch.float32)
        log_sums = query.new_empty(splits, num_rows, heads, dtype=torch.float32)
    attend_tiles[(len(tiles), kv_heads, splits)](
        query, key_cache, value_cache, parts, log_sums, *tables,
        num_rows, scale * _LOG2_E, query.stride(0), query.stride(1),
        **constants(
            head_dim=dim, heads=heads, kv_heads=kv_heads, block_tokens=block_tokens,
            words=ancestors.shape[1], splits=splits, tile_rows=tile_rows,
            is_half=query.element_size() == 2,
        ),
    )  # fmt: skip
    if splits > 1:
        places = num_rows * heads
        join_splits[(places,)](
            parts, log_sums, out, places, HEAD_DIM=dim,
            DIM_PADDED=triton.next_power_of_2(dim), SPLITS=splits,
        )  # fmt: skip
    return out


def constants(
    *,
    head_dim: int,
    heads: int,
    kv_heads: int,
    block_tokens: int,
    words: int,
    splits: int,
    tile_rows: int,
    is_half: bool,
) -> dict[str, Any]:
    """What `attend_tiles` is compiled for."""
    group = heads // kv_heads
    group_padded = triton.next_power_of_2(group)
    is_wide = tile_rows * group_padded > 64
    return {
        "WORDS": words,
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "GROUP_PADDED": group_padded,
        "HEAD_DIM": head_dim,
        "DIM_PADDED": max(16, triton.next_power_of_2(head_dim)),
        "BLOCK_TOKENS": block_tokens,
        "TILE_ROWS": tile_rows,
        # Queries, keys and values must fit into the 99 KiB that a block has on sm_89.
        "TILE_SLOTS": 64 if is_half else 16 if is_wide else 32,
        "SPLITS": splits,
        "PRECISION": "ieee",  # for float32; narrower types have only one
        "num_warps": 8 if is_wide else 4,
    }


def num_splits(programs: int, max_slots: int) -> int:
    """A power of two: as many as fill the GPU, and no more than the contexts are worth."""
    wanted = min(TARGET_PROGRAMS // max(programs, 1), max_slots // MIN_SPLIT_SLOTS, MAX_SPLITS)
    return 1 << max(0, wanted.bit_length() - 1) if wanted > 0 else 1
