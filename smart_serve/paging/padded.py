"""Rows packed for a CPU: each group padded to its longest member, under dense masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.tree_attention import AttentionGroup
from smart_serve.models.attention_step import AttentionStep
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import Ints, PackedStep, Rows


def pack_padded(groups: Sequence[Sequence[Rows]], cache: KvCache, like: torch.Tensor) -> PackedStep:
    """The groups one after another; masks have the dtype of `like`."""
    flat = [rows for group in groups for rows in group]
    first_rows = np.concatenate(([0], np.cumsum([len(rows.token_ids) for rows in flat])))
    slots = [cache.slots(rows.blocks, rows.slot_positions) for rows in flat]
    attention_groups, index = [], 0
    for group in groups:
        if group:
            starts = first_rows[index : index + len(group) + 1]
            attention_groups.append(_attention_group(group, starts, cache.block_tokens, like))
        index += len(group)
    ids = np.concatenate([rows.token_ids for rows in flat])
    positions = np.concatenate([rows.positions for rows in flat], axis=-1)
    packed = torch.from_numpy(np.vstack((ids, np.concatenate(slots), positions))).to(like.device)
    attention = AttentionStep(cache.keys, cache.values, packed[1], tuple(attention_groups))
    return PackedStep(packed[0], packed[2:].view(positions.shape), attention, first_rows)


def _attention_group(
    group: Sequence[Rows], first_rows: Ints, block_tokens: int, like: torch.Tensor
) -> AttentionGroup:
    lengths = np.diff(first_rows)
    width, num_rows = int(lengths.max()), int(lengths.sum())
    num_blocks = -(-max(rows.num_slots for rows in group) // block_tokens)
    run = _run(group[0].blocks[:num_blocks]) if len(group) == 1 else None
    tables = np.zeros((len(group), num_blocks), np.int64)
    for table, rows in zip(tables, group, strict=True):
        used = rows.blocks[:num_blocks]
        table[: len(used)] = used
    mask = _mask(group, width, num_blocks * block_tokens)
    padded_rows = real_queries = None
    if num_rows != len(group) * width:
        offsets = np.arange(width)[None, :]
        padded = first_rows[:-1, None] + np.minimum(offsets, lengths[:, None] - 1)
        padded_rows = torch.from_numpy(padded.reshape(-1)).to(like.device)
        real = np.flatnonzero((offsets < lengths[:, None]).reshape(-1))
        real_queries = torch.from_numpy(real).to(like.device)
    return AttentionGroup(
        block_tables=torch.from_numpy(tables).to(like.device),
        mask=torch.from_numpy(mask).to(device=like.device, dtype=like.dtype),
        first_row=int(first_rows[0]),
        num_rows=num_rows,
        padded_rows=padded_rows,
        real_queries=real_queries,
        run=run,
    )


def _run(blocks: list[int]) -> range | None:
    """The blocks as a range, if they lie one after another in the cache, as a fresh pool's do."""
    run = range(blocks[0], blocks[0] + len(blocks))
    return run if blocks == list(run) else None


def _mask(group: Sequence[Rows], width: int, num_keys: int) -> NDArray[np.float32]:
    """Additive mask [G, 1, width, num_keys]: 0 where a query may look, -inf elsewhere."""
    # A row that sees nothing would give NaN, so padded queries see the committed tokens too.
    committed = np.asarray([[max(rows.num_committed, 1)] for rows in group])
    seen = np.where(np.arange(num_keys) < committed, np.float32(0.0), np.float32(-np.inf))
    mask = np.repeat(seen[:, None, None, :], width, axis=2)
    for own, rows in zip(mask[:, 0], group, strict=True):
        n = len(rows.token_ids)
        own[:n, rows.num_committed : rows.num_slots] = np.where(rows.visible, 0.0, -np.inf)
    return mask
