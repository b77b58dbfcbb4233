"""What a typical draft tree of this drafter is worth, learnt from the trees of recent steps.

Needed before anything is drafted: would speculation pay at all at this batch?
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smart_serve.speculation.calibration import ALPHA
from smart_serve.speculation.growth import PROFILE_WIDTH, Growth
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.smart import DEFAULT_CHILD_MASS
from smart_serve.speculation.tree import FloatArray

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
        self._priced: tuple[GrowthPlan, int, FloatArray, FloatArray] | None = None
        """The last plan and batch, with what `_prices` said of them."""

    @property
    def child_mass(self) -> tuple[float, ...]:
        return tuple(self._child_mass.tolist())

    def observe(self, growth: Growth) -> None:
        """One step's trees. Depths that were not opened move with the last one that was: a drafter
        whose first tokens are worth nothing is not to be hoped for deeper down."""
        # Other policies may go deeper than is asked about here.
        best = growth.best_by_depth[: len(self._best)]
        opened = len(best)
        if opened:
            before = self._best[opened - 1, 0]
            new = np.asarray(best)
            self._best[:opened] += WEIGHT * (new - self._best[:opened])
            last = self._best[opened - 1, 0]
            self._best[opened:] = np.minimum(self._best[opened:] * last / max(before, 1e-9), last)
        mass = np.asarray(growth.child_mass[: len(self._best)])
        if len(mass):
            # Deeper ones are believed to be like the last: taken for worse, they would never be
            # opened, and nothing would ever be learnt of them.
            mass = np.concatenate((mass, np.full(len(self._best) - len(mass), mass[-1])))
            self._child_mass += WEIGHT * (mass - self._child_mass)

    def best_speedups(
        self, plan: GrowthPlan, batch: int, catch_up_rows: Sequence[int]
    ) -> list[float]:
        """Tokens per time of the best tree of typical shape, over plain decoding's; for each number
        of rows that the drafter's first pass may have to run."""
        tokens, later_ms = self._prices(plan, batch)
        plain = plan.verify_knot_ms[0]
        return [
            plain * float((tokens / (plan.draft_layer(max(rows, 1)) + later_ms)).max(initial=0.0))
            for rows in catch_up_rows
        ]

    def _prices(self, plan: GrowthPlan, batch: int) -> tuple[FloatArray, FloatArray]:
        """Tokens of one typical tree, and what the step costs after its first draft pass, both
        [depth, nodes of a tree]. They stand as long as the plan does."""
        if self._priced is None or self._priced[0] is not plan or self._priced[1] != batch:
            depth = min(plan.max_depth, len(self._best))
            sizes = np.arange(1, self._best.size + 1)[: max(0, plan.max_nodes // batch)]
            verify = np.interp(sizes * batch, plan.verify_knots, plan.verify_knot_ms)
            layers = plan.wire_ms + plan.draft_layer(batch) * np.arange(depth)[:, None]
            tokens = self._expected_tokens()[:depth, : len(sizes)]
            self._priced = plan, batch, tokens, layers + verify
        return self._priced[2], self._priced[3]

    def _expected_tokens(self) -> FloatArray:
        """Of one tree of 1, 2, … of the best nodes of the first d depths; 0 where there are no
        so many. [depth, nodes]"""
        depths, width = self._best.shape
        probs = np.tile(self._best.reshape(-1), (depths, 1))
        there_are = np.arange(1, depths + 1)[:, None] * width
        is_there = np.arange(probs.shape[1]) < there_are
        ordered = -np.sort(-np.where(is_there, probs, 0.0), axis=1)
        return np.where(is_there, 1.0 + np.cumsum(ordered, axis=1), 0.0)
