"""The target's cost table, measured on the replica's own device before it serves."""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import torch

from smart_serve.models.target import TargetModel
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import Rows, pack_rows
from smart_serve.speculation.cost import CostTable, Curve

BATCHES = (1, 4, 16, 64, 256, 512)
ROWS_PER_SEQUENCE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Up to `MAX_ROWS` even for one sequence: a curve that ends on the flat part, where the weights are
loaded, would go on flat, and hundreds of draft nodes would look free."""
CONTEXTS = (64, 512)
MAX_ROWS = 512
"""Packed rows of the largest measured step; beyond it the curve goes on with its last slope."""
ROWS_OF_LARGE_BATCH = 4
"""Rows per sequence that are measured even where that makes more than `MAX_ROWS`."""
PAST_KNEE = 4.0
"""A step that takes so many times the smallest one is bound by arithmetic: the curve goes on
straight, and need not be measured further."""
REPEATS = 4
"""After one warm-up; the median of four rides out a burst of a noisy neighbour."""


def measure_costs(
    model: TargetModel, cache: KvCache, max_batch: int, *, progress: bool
) -> CostTable:
    """Median milliseconds of pack + forward + head + arg-max; overwrites the (idle) cache."""
    batches = tuple(b for b in BATCHES if b <= max_batch) or (1,)
    # A batch is measured only where its contexts fit into the cache.
    room = (cache.num_blocks - 1) * cache.block_tokens
    contexts = tuple(c for c in CONTEXTS if batches[-1] * c + _max_rows(batches[-1]) <= room)
    contexts = contexts or (max(1, room // (2 * batches[-1])),)
    curves, done, total = [], 0, len(batches) * len(contexts)
    for batch in batches:
        row = []
        for context in contexts:
            row.append(_curve(model, cache, batch, context))
            done += 1
            if progress:
                print(f"\rmeasuring the target's cost: {done}/{total}", end="", file=sys.stderr)
        curves.append(tuple(row))
    if progress:
        print(file=sys.stderr)
    return CostTable(batches, contexts, tuple(curves))


def _max_rows(batch: int) -> int:
    return max(MAX_ROWS, ROWS_OF_LARGE_BATCH * batch)


def _curve(model: TargetModel, cache: KvCache, batch: int, context: int) -> Curve:
    tokens: list[int] = []
    times: list[float] = []
    for rows in ROWS_PER_SEQUENCE:
        blocks_each = -(-(context + rows) // cache.block_tokens)
        too_big = batch * rows > _max_rows(batch) or batch * blocks_each >= cache.num_blocks
        if tokens and (too_big or times[-1] > PAST_KNEE * times[0]):
            break
        tokens.append(batch * rows)
        times.append(_time_ms(model, cache, _rows(batch, rows, context, blocks_each)))
    return Curve.monotone(tokens, times)


def _rows(batch: int, rows: int, context: int, blocks_each: int) -> list[Rows]:
    return [
        Rows(
            blocks=list(range(1 + i * blocks_each, 1 + (i + 1) * blocks_each)),
            num_committed=context,
            token_ids=np.zeros(rows, np.int64),
            positions=context + np.arange(rows),
            visible=np.tri(rows, dtype=np.bool_),
        )
        for i in range(batch)
    ]


@torch.inference_mode()
def _time_ms(model: TargetModel, cache: KvCache, rows: list[Rows]) -> float:
    like = model.embed(torch.zeros(0, dtype=torch.int64, device=model.device))
    samples = []
    for _ in range(1 + REPEATS):
        clock = time.perf_counter()
        step = pack_rows([rows], cache, like)
        hidden = model.forward(model.embed(step.token_ids), step.positions, step.attention)
        model.logits(hidden).argmax(dim=-1).cpu()
        samples.append(1e3 * (time.perf_counter() - clock))
    return statistics.median(samples[1:])
