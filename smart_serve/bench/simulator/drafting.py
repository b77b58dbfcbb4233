"""The drafting of one simulated step: the real growers over a synthetic drafter."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smart_serve.bench.simulator.drafter import Children, SyntheticDrafter
from smart_serve.speculation.growth import Growth, TreeGrower
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.policies import make_grower
from smart_serve.speculation.tree import FloatArray, Forest, IntArray

LayerCost = Callable[[int, int], float]
"""(rows, rows that are asked for children) -> true milliseconds of a drafting pass."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """The trees of one step and what is true of them."""

    growth: Growth
    accepted: NDArray[np.bool_]  # [M]
    expected_tokens: float
    """Beyond the bonus tokens, given these trees: the luck of the draw is left out of figures."""
    layer_rows: tuple[int, ...]
    layer_ms: tuple[float, ...]
    grower_ms: float
    """Processor time that the grower took in this process."""


class Clocked:
    """A grower whose own processor time is added up."""

    def __init__(self, plan: GrowthPlan, num_trees: int) -> None:
        clock = time.thread_time()
        self._grower: TreeGrower = make_grower(plan, num_trees)
        self.spent_ms = 1e3 * (time.thread_time() - clock)

    def add(self, found: Children) -> NDArray[np.int64]:
        """The next frontier, as indices into the flattened children."""
        clock = time.thread_time()
        # A token's id is its candidate's: the forest then says which were taken.
        ids = self._grower.num_candidates + np.arange(found.acceptance.size)
        chosen = self._grower.add_layer(
            ids.reshape(found.acceptance.shape), np.log(found.confidences)
        )
        self.spent_ms += 1e3 * (time.thread_time() - clock)
        return chosen

    def finish(self) -> Growth:
        clock = time.thread_time()
        growth = self._grower.finish()
        self.spent_ms += 1e3 * (time.thread_time() - clock)
        return growth


def draft(
    plan: GrowthPlan,
    drafter: SyntheticDrafter,
    sequences: IntArray,
    catch_up_rows: int,
    layer_cost: LayerCost,
) -> Drafted:
    """A tree for each of `sequences`; the first pass runs `catch_up_rows` rows."""
    grower = Clocked(plan, len(sequences))
    frontier, rows = np.arange(len(sequences)), catch_up_rows
    layers: list[Children] = []
    layer_rows: list[int] = []
    layer_ms: list[float] = []
    while len(frontier):
        layer_rows.append(rows)
        layer_ms.append(layer_cost(rows, len(frontier)))
        layers.append(drafter.children(sequences[frontier], plan.top_k))
        chosen = grower.add(layers[-1])
        frontier = np.repeat(frontier, plan.top_k)[chosen]
        rows = len(frontier)
    growth = grower.finish()
    acceptance = np.concatenate([layer.acceptance.reshape(-1) for layer in layers])
    is_true = np.concatenate([layer.is_true.reshape(-1) for layer in layers])
    taken = growth.forest.token_ids
    return Drafted(
        growth=growth,
        accepted=_along_paths(growth.forest, is_true[taken].astype(np.float64)) > 0.5,
        expected_tokens=float(_along_paths(growth.forest, acceptance[taken]).sum()),
        layer_rows=tuple(layer_rows),
        layer_ms=tuple(layer_ms),
        grower_ms=grower.spent_ms,
    )


def _along_paths(forest: Forest, values: FloatArray) -> FloatArray:
    """Product of `values` [M] from the root down to each node. [M]"""
    products = values.copy()
    nodes = np.repeat(forest.offsets[:-1], forest.sizes) + forest.parents - 1
    for depth in range(2, int(forest.depths.max(initial=0)) + 1):
        here = np.flatnonzero(forest.depths == depth)
        products[here] *= products[nodes[here]]
    return products
