"""Policy `smart`: expand and verify a node only if it raises expected tokens per time.

    G = Σ_i (1 + Σ_{u ∈ T_i} P(u))            expected tokens of the step, over all sequences i
    C = wire + Σ_layers draft_layer(rows) + verify(nodes)
    maximise G / C

Where the step is overlapped with the other half of the batch (`speculation.overlap`), C is the
larger of drafting and verifying instead of their sum.

After Wang & Zhou, "SMART: When is it Actually Worth Expanding a Speculative Tree?"
(arXiv 2604.09731), with four changes: the expected length is the sum over nodes and counts the
bonus token (their eq. 2 takes the mean over paths and leaves it out); costs are measured tables;
opening a layer pays its whole draft pass before any node of it is known; one budget is shared by
all sequences of the batch, best first.
"""

from __future__ import annotations

import numpy as np

from smart_serve.speculation.growth import Layer, TreeGrower
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import FloatArray, IntArray

DEFAULT_CHILD_MASS = 0.6
"""Share of a node's probability that its best child keeps, where nothing was measured yet."""


class SmartGrower(TreeGrower):
    """Greedy in layers, exact within a layer: P never grows down a path, so the best n nodes of
    the batch are closed under parents and one scan over n finds the optimum."""

    def __init__(self, plan: GrowthPlan, num_trees: int) -> None:
        super().__init__(plan, num_trees)
        # What the drafter has to catch up with is left out. Each token is caught up with once,
        # whatever the trees: a price per token, and G / (C + c·G) is largest where G / C is.
        self._spent_ms = plan.wire_ms + plan.draft_layer(num_trees)
        self._verify_ms = plan.verify_ms(2 * plan.max_nodes)
        self._num_ranked = 0
        """Layers that the ranking knows of."""
        self._best = np.empty(0, np.int64), np.empty(0)
        """Ids and path probabilities of the best candidates of those layers, best first."""
        self._tokens = np.empty(0)

    def expand(self, layer: Layer) -> IntArray:
        """The candidates whose best children are worth the next layer's draft pass."""
        order, tokens, rates = self._scan()
        nodes = int(rates.argmax())
        worth = order[:nodes]
        worth = worth[worth >= layer.first_id] - layer.first_id
        gains = self._next_gains(layer, worth, order[:nodes])
        count, self._spent_ms = rows_worth_opening(
            self.plan, self._spent_ms, self._verify_ms, nodes, float(tokens[nodes]), gains
        )
        chosen: IntArray = np.sort(worth[:count])
        return chosen

    def choose(self) -> IntArray:
        """What to verify: the drafting is paid for, whatever is taken."""
        order, _, rates = self._scan()
        nodes = int(rates.argmax())
        if self.plan.is_probe:
            nodes = max(nodes, min(self.num_trees, len(order)))
        chosen: IntArray = order[:nodes]
        return chosen

    def _scan(self) -> tuple[IntArray, FloatArray, FloatArray]:
        """(candidate ids best first [m], expected tokens with the best n [n + 1], tokens per ms).

        The arg-max is global: real costs are a staircase, and a local one may be a tread.
        """
        order, tokens = self._rank()
        step_ms = self.plan.step_ms(self._spent_ms, self._verify_ms[: len(tokens)])
        return order, tokens, tokens / step_ms

    def _rank(self) -> tuple[IntArray, FloatArray]:
        """The first two of `_scan`, kept until a layer comes."""
        if self._num_ranked < len(self.layers):
            for layer in self.layers[self._num_ranked :]:
                self._best = self._ranked(self._best, layer)
            self._num_ranked = len(self.layers)
            gains = self._gains(*self._best)
            self._tokens = np.concatenate(((self.num_trees,), self.num_trees + np.cumsum(gains)))
        return self._best[0], self._tokens

    def _ranked(
        self, best: tuple[IntArray, FloatArray], layer: Layer
    ) -> tuple[IntArray, FloatArray]:
        """The `max_nodes` best of `best` and the candidates of a deeper `layer`; ties go to the
        shallower node."""
        ids, probs = best
        worst = probs[-1] if len(probs) == self.plan.max_nodes else -1.0
        better = np.flatnonzero(layer.path_probs > worst)
        ids = np.concatenate((ids, layer.first_id + better))
        probs = np.concatenate((probs, layer.path_probs[better]))
        order = np.argsort(-probs, kind="stable")[: self.plan.max_nodes]
        return ids[order], probs[order]

    def _gains(self, ids: IntArray, path_probs: FloatArray) -> FloatArray:
        """Expected tokens that each candidate adds to those before it, both [m]."""
        return path_probs

    def _next_gains(self, layer: Layer, worth: IntArray, taken: IntArray) -> FloatArray:
        """What the best child of each candidate `worth` expanding may add to the `taken` ones."""
        mass = child_mass_at(self.plan, len(self.layers) + 1)
        gains: FloatArray = mass * layer.path_probs[worth]
        return gains


def rows_worth_opening(
    plan: GrowthPlan,
    spent_ms: float,
    verify_ms: FloatArray,
    nodes: int,
    tokens: float,
    gains: FloatArray,
) -> tuple[int, float]:
    """How many rows of another draft pass pay, and what is spent on drafting with it, where `nodes`
    are to be verified so far, `tokens` expected, and each row adds one of `gains`, best first."""
    if len(gains) == 0:
        return 0, spent_ms
    opened = spent_ms + plan.draft_ms(len(gains))[1 : len(gains) + 1]
    # One child of each expanded node is expected among the verified ones.
    cost = plan.step_ms(opened, verify_ms[nodes + 1 : nodes + len(gains) + 1])
    rates = (tokens + np.cumsum(gains)) / cost
    best = int(rates.argmax())
    if rates[best] <= tokens / plan.step_ms(spent_ms, verify_ms[nodes]):
        return 0, spent_ms
    return best + 1, float(opened[best])


def child_mass_at(plan: GrowthPlan, depth: int) -> float:
    """Share of a node's probability that its best child, at `depth`, is expected to keep."""
    known = plan.child_mass
    return known[min(depth, len(known)) - 1] if known else DEFAULT_CHILD_MASS
