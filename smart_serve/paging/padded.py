"""Rows packed for a CPU: each group padded to its longest member, under dense masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.tree_attention import AttentionGroup
from smart_serve.models.attention_step import AttentionStep
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import Blocks, Ints, PackedStep, Rows, joined

GATHERED_BYTES = 2**23
"""Of one layer's keys and values that are copied together, at most: about what the caches of two
cores hold. Far beyond, the allocator maps fresh memory for every copy (glibc: from 32 MiB on), and
32 sequences of 1,500 tokens took five times as long as in parts of this size."""


def pack_padded(groups: Sequence[Rows], cache: KvCache, like: torch.Tensor) -> PackedStep:
    """The groups one after another; masks have the dtype of `like`."""
    rows, size = joined(groups), cache.block_tokens
    groups = [part for group in groups for part in _parts(group, cache)]
    ends = np.cumsum([len(group.token_ids) for group in groups])
    attention_groups = tuple(
        _attention_group(group, int(end) - len(group.token_ids), size, like)
        for group, end in zip(groups, ends, strict=True)
    )
    slots = rows.slots(rows.tables(size), size)
    packed = torch.from_numpy(np.vstack((rows.token_ids, slots, rows.positions))).to(like.device)
    positions = packed[2:] if len(rows.positions) > 1 else packed[2]
    attention = AttentionStep(cache.keys, cache.values, packed[1], attention_groups)
    return PackedStep(packed[0], positions, attention, rows.first_rows)


def _parts(group: Rows, cache: KvCache) -> Iterator[Rows]:
    """Its sequences, as many at a time as are gathered together."""
    slot_bytes = 2 * cache.keys[0][0, 0].nbytes
    most = max(1, GATHERED_BYTES // (slot_bytes * int(group.num_slots.max())))
    for begin in range(0, len(group.blocks), most):
        yield group.part(begin, min(begin + most, len(group.blocks)))


def _attention_group(
    group: Rows, first_row: int, block_tokens: int, like: torch.Tensor
) -> AttentionGroup:
    """Of the group whose rows begin at packed row `first_row`."""
    lengths = group.lengths
    width, num_rows = int(lengths.max()), len(group.token_ids)
    num_blocks = -(-int(group.num_slots.max()) // block_tokens)
    tables = np.zeros((len(lengths), num_blocks), np.int64)
    for table, blocks in zip(tables, group.blocks, strict=True):
        used = blocks[:num_blocks]
        table[: len(used)] = used
    # Queries beyond a sequence's last row are that row again: one that sees nothing would give NaN.
    offsets = np.arange(width)
    padded = group.first_rows[:-1, None] + np.minimum(offsets, lengths[:, None] - 1)
    mask = _mask(group, padded, num_blocks * block_tokens)
    padded_rows = real_queries = None
    if num_rows != padded.size:
        padded_rows = torch.from_numpy(first_row + padded.reshape(-1)).to(like.device)
        real = np.flatnonzero((offsets < lengths[:, None]).reshape(-1))
        real_queries = torch.from_numpy(real).to(like.device)
    return AttentionGroup(
        block_tables=torch.from_numpy(tables).to(like.device),
        mask=torch.from_numpy(mask).to(device=like.device, dtype=like.dtype),
        first_row=first_row,
        num_rows=num_rows,
        padded_rows=padded_rows,
        real_queries=real_queries,
        run=_run(group.blocks[0][:num_blocks]) if len(lengths) == 1 else None,
    )


def _run(blocks: Blocks) -> range | None:
    """The blocks as a range, if they lie one after another in the cache, as a fresh pool's do."""
    run = range(blocks[0], blocks[0] + len(blocks))
    return run if list(blocks) == list(run) else None


def _mask(group: Rows, rows: Ints, num_keys: int) -> NDArray[np.float32]:
    """Additive mask [G, 1, Q, num_keys] of the group's `rows` [G, Q]: 0 where a query may look,
    -inf elsewhere."""
    seen = np.arange(num_keys) < group.prefixes[rows][..., None]
    if group.ancestors.any():
        bits = np.unpackbits(group.ancestors.view(np.uint8), axis=1, bitorder="little")
        named = bits.view(np.bool_)[rows]
        for own, names, committed in zip(seen, named, group.num_committed.tolist(), strict=True):
            ahead = own[:, committed : committed + names.shape[1]]
            ahead |= names[:, : ahead.shape[1]]
    return np.where(seen, np.float32(0.0), np.float32(-np.inf))[:, None]
