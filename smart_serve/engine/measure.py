"""The target's cost table, measured on the replica's own device before it serves."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from smart_serve.engine.forward import Forward
from smart_serve.models.target import TargetModel
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import Rows
from smart_serve.progress import show_progress
from smart_serve.speculation.cost import CostTable
from smart_serve.speculation.cost_grid import CostGrid, Room

REPEATS = 4
"""After one warm-up; the median of four rides out a burst of a noisy neighbour."""
ENOUGH_MS = 80.0
"""Of measuring one step: long ones are repeated less, for bursts weigh less in them."""


def cost_grid(model: TargetModel, cache: KvCache, forward: Forward, max_batch: int) -> CostGrid:
    """What of the grid `cache` has room for; its block 0 is set aside."""
    room = Room(cache.num_blocks - 1, cache.block_tokens, model.max_context)
    return CostGrid.within(room, max_batch, forward.stairs)


def measure_costs(
    model: TargetModel, forward: Forward, grid: CostGrid, *, progress: bool
) -> CostTable:
    """Median milliseconds of pack + forward + head + arg-max; overwrites the (idle) cache."""

    def step_ms(batch: int, rows: int, context: int) -> float:
        sequences = _rows(model, batch, rows, context, grid.room.block_tokens)
        return _time_ms(model, forward, sequences)

    def show(done: int, total: int) -> None:
        if progress:
            show_progress("measuring the target's cost", done, total)

    return grid.measure(step_ms, show)


def _rows(model: TargetModel, batch: int, rows: int, context: int, block_tokens: int) -> list[Rows]:
    blocks_each = -(-(context + rows) // block_tokens)
    indices, rope = context + np.arange(rows), model.rope_positions(())
    # On as many axes as a served step has: only then do captured graphs take it.
    positions = indices if rope is None else rope.at(indices)
    return [
        Rows(
            blocks=list(range(1 + i * blocks_each, 1 + (i + 1) * blocks_each)),
            num_committed=context,
            token_ids=np.zeros(rows, np.int64),
            positions=positions,
            visible=np.tri(rows, dtype=np.bool_),
        )
        for i in range(batch)
    ]


@torch.inference_mode()
def _time_ms(model: TargetModel, forward: Forward, rows: list[Rows]) -> float:
    samples = []
    for _ in range(1 + REPEATS):
        clock = time.perf_counter()
        _, hidden = forward.run([rows], {})
        model.logits(hidden.last).argmax(dim=-1).cpu()
        samples.append(1e3 * (time.perf_counter() - clock))
    return statistics.median(samples[1:])
