"""How often the rule in use accepts a draw: branching probabilities, measured.

A draw is judged once its parent is accepted and its elder siblings are rejected. Whatever the rule
(a ratio of probabilities, a whole path at a time, the target's own token), what became of it is an
outcome of the probability that is wanted; only the outcomes of one rule must not be taken for those
of another, which shows in the numbers within some dozen steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smart_serve.config import SMART_DRAWN
from smart_serve.speculation.calibration import ALPHA, NUM_KNOTS, Calibration
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.growth import rank_in_runs
from smart_serve.speculation.tree import Forest, IntArray

PRIOR = np.full(NUM_KNOTS, ALPHA)
"""A draw from the target's own law would always be accepted, however unlikely; damped."""


class DrawAcceptance(Calibration):
    """Acceptance by turn (first, second, … child) and by the probability of the draw."""

    def __init__(self) -> None:
        super().__init__(SMART_DRAWN.num_children, PRIOR)

    def observe_draws(self, forest: Forest, laws: DraftLaws, accepted: NDArray[np.bool_]) -> None:
        """`accepted` [M] over the forest's nodes; their confidences are what they were drawn
        with."""
        nodes, parents, turns = _turns(forest, laws)
        # One child at most is accepted: its elders were judged before it, the others never.
        turn_of = np.full(forest.num_nodes + forest.num_trees, SMART_DRAWN.num_children + 1)
        hits = accepted[nodes]
        turn_of[parents[hits]] = turns[hits]
        reached = np.concatenate((accepted, np.ones(forest.num_trees, np.bool_)))
        judged = reached[parents] & (turns <= turn_of[parents])
        self.count(turns[judged], forest.confidences[nodes[judged]], hits[judged])


def _turns(forest: Forest, laws: DraftLaws) -> tuple[IntArray, IntArray, IntArray]:
    """Of every draw without replacement: its node, its parent (a root: the number of nodes + its
    tree), and which of the parent's draws it was, from 1."""
    nodes = laws.nodes(forest)
    rows = forest.parents[nodes]
    parents = np.where(
        rows == 0, forest.num_nodes + laws.draw_trees, forest.offsets[laws.draw_trees] + rows - 1
    )
    order = np.argsort(parents, kind="stable")
    turns = np.empty_like(order)
    turns[order] = rank_in_runs(parents[order]) + 1
    return nodes, parents, turns
