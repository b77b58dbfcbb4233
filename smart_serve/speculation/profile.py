"""What a typical draft tree of this drafter is worth, learnt from the trees of recent steps.

Needed before anything is drafted: would speculation pay at all at this batch?
"""

from __future__ import annotations

import numpy as np

from smart_serve.speculation.calibration import ALPHA
from smart_serve.speculation.growth import PROFILE_WIDTH, Growth
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.smart import DEFAULT_CHILD_MASS

WEIGHT = 0.1
"""Of one step: the memory is about ten drafted steps."""


class DrafterProfile:
    """Mean path probabilities of the best candidates per depth, and what best children keep."""

    def __init__(self, max_depth: int) -> None:
        # Before anything is known, a chain of α-damped certain tokens: hopeful enough to try.
        chain = ALPHA ** np.arange(1, max_depth + 1)
        self._best = np.zeros((max_depth, PROFILE_WIDTH))
        self._best[:, 0] = chain
        self._child_mass = np.full(max_depth, DEFAULT_CHILD_MASS)

    @property
    def child_mass(self) -> tuple[float, ...]:
        return tuple(self._child_mass.tolist())

    def observe(self, growth: Growth) -> None:
        """One step's trees. Depths that were not opened move with the last one that was: a drafter
        whose first tokens are worth nothing is not to be hoped for deeper down."""
        opened = len(growth.best_by_depth)
        if opened:
            before = self._best[opened - 1, 0]
            new = np.asarray(growth.best_by_depth)
            self._best[:opened] += WEIGHT * (new - self._best[:opened])
            last = self._best[opened - 1, 0]
            self._best[opened:] = np.minimum(self._best[opened:] * last / max(before, 1e-9), last)
        mass = np.asarray(growth.child_mass)
        self._child_mass[: len(mass)] += WEIGHT * (mass - self._child_mass[: len(mass)])

    def best_speedup(self, plan: GrowthPlan, batch: int, catch_up_rows: int) -> float:
        """Tokens per time of the best tree of typical shape, over plain decoding's."""
        tree_sizes = np.arange(1, self._best.size + 1)
        tree_sizes = tree_sizes[tree_sizes * batch <= plan.max_nodes]
        knots = np.asarray(plan.verify_knots, np.float64)
        verify = np.interp(tree_sizes * batch, knots, plan.verify_knot_ms)
        layer_ms = plan.draft_layer(batch)
        spent = plan.wire_ms + plan.draft_layer(max(catch_up_rows, 1))
        best = 0.0
        for depth in range(1, min(plan.max_depth, len(self._best)) + 1):
            probs = -np.sort(-self._best[:depth].reshape(-1))[: len(tree_sizes)]
            tokens = batch * (1.0 + np.cumsum(probs))
            best = max(best, float((tokens / (spent + verify[: len(probs)])).max(initial=0.0)))
            spent += layer_ms
        return best * plan.verify_knot_ms[0] / batch
