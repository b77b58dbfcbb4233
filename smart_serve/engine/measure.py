"""The target's cost table, measured on the replica's own device before it serves."""

from __future__ import annotations

import time

import numpy as np
import torch

from smart_serve.engine.forward import Forward
from smart_serve.models.target import TargetModel
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import Rows, causal_rows
from smart_serve.progress import show_progress
from smart_serve.speculation.cost import CostTable, are_alike
from smart_serve.speculation.cost_grid import CostGrid, Room

REPEATS = 2
"""After one warm-up, in each pass over the grid."""
SPOT_ROWS = (1, 32)
"""Rows of one sequence by which a stored table is checked: a plain step, and a good tree's."""
SPOT_REPEATS = 6


def cost_grid(model: TargetModel, cache: KvCache, forward: Forward, max_batch: int) -> CostGrid:
    """What of the grid `cache` has room for; its block 0 is set aside."""
    room = Room(cache.num_blocks - 1, cache.block_tokens, model.max_context)
    return CostGrid.within(room, max_batch, forward.stairs)


def measure_costs(
    model: TargetModel, forward: Forward, grid: CostGrid, *, progress: bool
) -> CostTable:
    """Least milliseconds of pack + forward + head + arg-max; overwrites the (idle) cache."""

    def step_ms(batch: int, rows: int, context: int) -> float:
        sequences = _rows(model, batch, rows, context, grid.room.block_tokens)
        return _time_ms(model, forward, sequences, REPEATS)

    def show(done: int, total: int) -> None:
        if progress:
            show_progress("measuring the target's cost", done, total)

    return grid.measure(step_ms, show)


def still_holds(table: CostTable, model: TargetModel, forward: Forward, grid: CostGrid) -> bool:
    """Whether the table has the grid's batches, and its first curve is what such steps take now;
    overwrites the (idle) cache.

    The machine may have been busy when it was measured, or be another than its name says.
    """
    if table.batches[-1] < grid.cells[-1][0]:
        return False
    batch, context = grid.cells[0][0], grid.cells[0][1][0]
    known, found = [], []
    for rows in SPOT_ROWS:
        if grid.room.holds(batch, context + rows):
            sequences = _rows(model, batch, rows, context, grid.room.block_tokens)
            found.append(_time_ms(model, forward, sequences, SPOT_REPEATS))
            known.append(table.step_ms(batch * rows, batch, context))
    return are_alike(known, found)


def _rows(model: TargetModel, batch: int, rows: int, context: int, block_tokens: int) -> Rows:
    blocks_each = -(-(context + rows) // block_tokens)
    indices, rope = context + np.arange(rows), model.rope_positions(())
    # On as many axes as a served step has: only then do captured graphs take it.
    positions = indices[None] if rope is None else rope.at(indices)
    return causal_rows(
        blocks=[range(1 + i * blocks_each, 1 + (i + 1) * blocks_each) for i in range(batch)],
        num_committed=np.full(batch, context),
        lengths=np.full(batch, rows),
        token_ids=np.zeros(batch * rows, np.int64),
        positions=np.tile(positions, batch),
    )


@torch.inference_mode()
def _time_ms(model: TargetModel, forward: Forward, rows: Rows, repeats: int) -> float:
    samples = []
    for _ in range(1 + repeats):
        clock = time.perf_counter()
        _, hidden = forward.run([rows], {})
        model.logits(hidden.last).argmax(dim=-1).cpu()
        samples.append(1e3 * (time.perf_counter() - clock))
    return min(samples[1:])
