"""What one drafting layer costs here, by rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from smart_serve.drafters.protocol import DraftBatch, Drafter, DraftInput
from smart_serve.speculation.cost import Curve, are_alike
from smart_serve.speculation.cost_grid import LAYER_ROWS, LAYER_SEQUENCES, PASSES
from smart_serve.speculation.plan import GrowthPlan

REPEATS = 3
"""In each of `PASSES` passes; the least time counts, as in the target's table."""
WARM_UP = 1
SPOT_ROWS = (1, 64)
"""By which a stored curve is checked."""
CONTEXT = 64
"""Tokens each sequence has committed; a drafting layer's cost hardly depends on it at this size."""
GRID = (LAYER_ROWS, LAYER_SEQUENCES, CONTEXT)
_FIRST_ID = -1_000
"""Sequence ids below zero: no engine uses them."""


def measure_layer_cost(drafter: Drafter) -> Curve:
    """Least milliseconds of a pass over so many rows, spread over as many sequences, or
    `LAYER_SEQUENCES`."""
    passes = [_times(drafter, LAYER_ROWS) for _ in range(PASSES)]
    return Curve.measured(LAYER_ROWS, [min(times) for times in zip(*passes, strict=True)])


def still_holds(curve: Curve, drafter: Drafter) -> bool:
    """Whether that is what passes take now."""
    return are_alike([curve(rows) for rows in SPOT_ROWS], _times(drafter, SPOT_ROWS))


def _times(drafter: Drafter, all_rows: Sequence[int]) -> list[float]:
    info = drafter.info
    width = info.vector_size if info.wants_vector_per_token else None
    times = []
    for rows in all_rows:
        ids = range(_FIRST_ID, _FIRST_ID - min(rows, LAYER_SEQUENCES), -1)
        each = rows // len(ids)
        drafter.propose(_batch(ids, 0, CONTEXT, width))
        samples = []
        for repeat in range(WARM_UP + REPEATS):
            proposal = drafter.propose(_batch(ids, CONTEXT + repeat * each, each, width))
            samples.append(proposal.layer_ms[0])
        times.append(min(samples[WARM_UP:]))
        drafter.close(ids)
    return times


def _batch(ids: range, start: int, length: int, width: int | None) -> DraftBatch:
    vectors = None if width is None else torch.zeros(length, width)
    token_ids = np.ones(length, np.int64)
    inputs = tuple(DraftInput(i, start, token_ids, vectors) for i in ids)
    growth = GrowthPlan(policy="eagle2", max_nodes=len(ids), max_depth=1, top_k=1, nodes_per_tree=1)
    return DraftBatch(inputs, growth)
