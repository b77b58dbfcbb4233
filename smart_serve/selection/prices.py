"""What steps of every tree shape cost, on this device and on others like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.selector import LONG_TREE, Action, num_nodes
from smart_serve.speculation.tree import FloatArray

NUM_PRICES = 3
"""Of the selector's features, the last ones."""
BATCHES = (1, 2, 4, 8, 16, 32)
SPREAD = 0.5
"""Standard deviation of the logarithm of prices in training: the selector reads them, and is to
serve on other devices and at other loads than it was trained on."""


@dataclass(frozen=True)
class Prices:
    """Of one batch size: what the selector is told, and what its choices cost."""

    features: FloatArray  # [3] log_draft_share, log_tree_price, log2_batch
    step_ms: FloatArray  # [A] of one sequence's share, were all trees of the batch this one


@dataclass(frozen=True)
class Market:
    """The measured tables of a target and its drafter, at one context."""

    table: CostTable
    drafter: Curve
    context: float

    def prices(
        self,
        actions: Sequence[Action],
        batch: int,
        *,
        draft_factor: float = 1.0,
        slope_factor: float = 1.0,
    ) -> Prices:
        """By the tables, or by those of a device whose drafter, or whose price for more tokens, is
        so many times theirs."""
        plain = self.table.step_ms(batch, batch, self.context)

        def verify(nodes: int) -> float:
            more = self.table.step_ms(batch * (1 + nodes), batch, self.context) - plain
            return plain + slope_factor * max(0.0, more)

        def draft(action: Action) -> float:
            num_branches, trunk, branch = action
            # A layer's pass runs the nodes of the one above it; the first runs the roots.
            rows = [1] * (trunk + 1) + [num_branches] * max(0, branch - 1)
            return draft_factor * sum(self.drafter(batch * n) for n in rows[: trunk + branch])

        step_ms = np.asarray([draft(action) + verify(num_nodes(action)) for action in actions])
        told = (draft_factor * self.drafter(batch) / plain, verify(LONG_TREE) / plain)
        return Prices(np.asarray([*np.log(told), np.log2(batch)]), step_ms / batch)

    def elsewhere(self, actions: Sequence[Action], rng: np.random.Generator) -> Prices:
        """Of a random batch, on a device somewhat like this one."""
        draft, slope = np.exp(rng.normal(0.0, SPREAD, 2)).tolist()
        batch = int(rng.choice(BATCHES))
        return self.prices(actions, batch, draft_factor=draft, slope_factor=slope)

    def moments(self) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the features that `elsewhere` tells, roughly."""
        told = [self.prices(((1, 1, 0),), batch).features for batch in BATCHES]
        return np.mean(told, axis=0), np.hypot(np.std(told, axis=0), SPREAD)
