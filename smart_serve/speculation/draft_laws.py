"""What the trees of a step were drawn from, where a policy draws tokens instead of taking the best.

A drafter's distribution is cut to its likeliest tokens before anything is drawn, so that what
crosses the wire is bounded; the cut distribution is then the draft distribution, and exactly known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smart_serve.speculation.tree import FloatArray, Forest, IntArray

LAW_WIDTH = 64
"""Tokens of one distribution: 768 bytes. What lies beyond is seldom 1 % of a drafter's mass."""


@dataclass(frozen=True, slots=True)
class DraftLaws:
    """Rows count within their tree; 0 is the root."""

    trees: IntArray  # [P] tree of each row that has children
    rows: IntArray  # [P] that row
    token_ids: IntArray  # [P, S] a token that stands twice has the sum: padding has probability 0
    probs: FloatArray  # [P, S] that its first child was drawn by; sums to 1
    draw_trees: IntArray  # [D] tree of each draw
    draw_rows: IntArray  # [D] the node that it gave; siblings in the order of their draws
    with_replacement: bool
    """False: a row's children were drawn one after the other from what was left."""

    def spread(self, places: Sequence[int]) -> DraftLaws:
        """The same trees under the numbers `places`."""
        numbers = np.asarray(places, np.int64)
        return self._kept(numbers, np.ones(len(numbers), np.bool_))

    def only(self, places: Sequence[int], num_trees: int) -> DraftLaws:
        """The trees `places` of `num_trees`, numbered anew from 0."""
        numbers = np.zeros(num_trees, np.int64)
        numbers[list(places)] = np.arange(len(places))
        is_kept = np.zeros(num_trees, np.bool_)
        is_kept[list(places)] = True
        return self._kept(numbers, is_kept)

    def nodes(self, forest: Forest) -> IntArray:
        """Index in the forest of every draw's node. [D]"""
        return forest.offsets[self.draw_trees] + self.draw_rows - 1

    def problem(self, forest: Forest, vocab_size: int) -> str | None:
        """Why these are not the laws of `forest`, or None.

        That a drafter drew by what it says can only be trusted: from one that did not, no rule that
        reads its laws has the target's. (`match` reads none.)
        """
        shape = (len(self.trees), self.token_ids.shape[-1])
        if self.rows.shape != shape[:1] or {self.token_ids.shape, self.probs.shape} != {shape}:
            return "laws of different shapes"
        if self.draw_rows.shape != self.draw_trees.shape:
            return "draws without a tree"
        for trees, rows, first in (
            (self.trees, self.rows, 0),
            (self.draw_trees, self.draw_rows, 1),
        ):
            if np.any(trees < 0) or np.any(trees >= forest.num_trees):
                return "a law or a draw of no tree"
            if np.any(rows < first) or np.any(rows > forest.sizes[trees]):
                return "a law or a draw outside its tree"
        if np.any(self.token_ids < 0) or np.any(self.token_ids >= vocab_size):
            return "a law of a token outside the vocabulary"
        if not (np.all(self.probs >= 0.0) and np.allclose(self.probs.sum(axis=1), 1.0)):
            return "a law that does not sum to 1"
        drawn = np.bincount(self.nodes(forest), minlength=forest.num_nodes)
        return "a node that was not drawn" if np.any(drawn == 0) else None

    def _kept(self, numbers: IntArray, is_kept: np.ndarray) -> DraftLaws:
        laws, draws = is_kept[self.trees], is_kept[self.draw_trees]
        return DraftLaws(
            trees=numbers[self.trees[laws]],
            rows=self.rows[laws],
            token_ids=self.token_ids[laws],
            probs=self.probs[laws],
            draw_trees=numbers[self.draw_trees[draws]],
            draw_rows=self.draw_rows[draws],
            with_replacement=self.with_replacement,
        )
