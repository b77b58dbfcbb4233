"""Policy `smart-drawn`: the SMART rule over trees that are drawn.

Children are drawn without replacement, one turn after the other. Before each draw stands what it
is worth, by the distribution q that it is made from and by the draws before it:

    gain(c, t) = P(c reached, draws 1..t−1 rejected) · Σ_x q_t(x) A_t(q_t(x))

where A_t(q) is the share of t-th draws of probability q that the rule in use accepts once the
earlier ones were rejected: its branching probability, measured. The nodes of all sequences get
their t-th child, best gain first, for as long as expected tokens per time grow; then which of the
drawn nodes to expand is decided as in `smart`, the next draft pass being paid before any of its
laws is known. A sibling is never looked at before it is kept, and once drawn it stays: whatever the
rule, the law of the text is the target's.
"""

from __future__ import annotations

import numpy as np

from smart_serve.config import SMART_DRAWN
from smart_serve.speculation.calibration import acceptance
from smart_serve.speculation.drawn import DrawnGrower
from smart_serve.speculation.growth import Layer, rank_in_runs
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.smart import child_mass_at, rows_worth_opening
from smart_serve.speculation.tree import FloatArray, IntArray


class SmartDrawnGrower(DrawnGrower):
    """`plan.calibration` is by turn, not by depth. A drawn candidate's confidence is what it was
    drawn with, its path probability that the walk comes there."""

    with_replacement = False

    def __init__(self, plan: GrowthPlan, num_trees: int) -> None:
        super().__init__(plan, num_trees)
        self._spent_ms = plan.wire_ms + plan.draft_layer(num_trees)
        self._verify_ms = plan.verify_ms(2 * plan.max_nodes)
        self._tokens = float(num_trees)
        """Expected, of the step."""
        self._sizes = np.zeros(num_trees, np.int64)

    def expand(self, layer: Layer) -> IntArray:
        drawn = super().expand(layer)
        order = drawn[np.argsort(-layer.path_probs[drawn], kind="stable")]
        gains = child_mass_at(self.plan, len(self.layers) + 1) * layer.path_probs[order]
        count, self._spent_ms = rows_worth_opening(
            self.plan, self._spent_ms, self._verify_ms, int(self._sizes.sum()), self._tokens, gains
        )
        return np.sort(order[:count])

    def places(self, layer: Layer, laws: FloatArray) -> IntArray:
        trees, width = layer.frontier.trees, layer.width
        left, rest = laws.copy(), layer.frontier.path_probs.copy()
        rows, places = np.flatnonzero(laws.any(axis=1)), [np.empty(0, np.int64)]
        for turn in range(1, SMART_DRAWN.num_children + 1):
            total = left[rows].sum(axis=1)
            rows = rows[total > 0.0]
            q = left[rows] / total[total > 0.0][:, None]
            gains = rest[rows] * (q * acceptance(self.plan.calibration, turn, q)).sum(axis=1)
            if turn == 1 and self.plan.is_watched:
                self.child_mass[-1] = float(gains.sum() / max(rest.sum(), 1e-12))
            worth = self._worth_drawing(gains, trees[rows])
            rows, q = rows[worth], q[worth]
            if len(rows) == 0:
                break
            columns = self.pick(q, trees[rows])
            self._sizes += np.bincount(trees[rows], minlength=self.num_trees)
            place = rows * width + columns
            layer.confidences[place] = q[np.arange(len(rows)), columns]
            accepted = acceptance(self.plan.calibration, turn, layer.confidences[place])
            layer.path_probs[place] = rest[rows] * accepted
            rest[rows] *= 1.0 - accepted
            left[rows, columns] = 0.0
            self._tokens += float(layer.path_probs[place].sum())
            places.append(place)
        return np.concatenate(places)

    def profiled(self, number: int) -> tuple[IntArray, FloatArray]:
        layer, drawn = self.layers[number], np.flatnonzero(self.drawn[number].counts)
        return layer.trees[drawn], layer.path_probs[drawn]

    def _worth_drawing(self, gains: FloatArray, trees: IntArray) -> IntArray:
        """Those of the next draws, with what each is worth, that raise tokens per time. Their own
        values are not known here."""
        order = np.argsort(-gains, kind="stable")
        by_tree = np.argsort(trees[order], kind="stable")
        ranks = np.empty_like(order)
        ranks[by_tree] = rank_in_runs(trees[order][by_tree])
        room = SMART_DRAWN.num_nodes - self._sizes[trees[order]]
        nodes = int(self._sizes.sum())
        order = order[(ranks < room) & (gains[order] > 0.0)][: self.plan.max_nodes - nodes]
        tokens = self._tokens + np.cumsum(np.append(0.0, gains[order]))
        rates = tokens / (self._spent_ms + self._verify_ms[nodes : nodes + len(tokens)])
        count = int(rates.argmax())
        if self.plan.is_probe and nodes == 0:
            count = max(count, len(order))
        worth: IntArray = np.sort(order[:count])
        return worth
