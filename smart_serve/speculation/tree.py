"""Draft trees of a batch as flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
PROBABILITY_SLACK = 1e-6
"""What rounding may add to a certain token's probability."""


@dataclass(frozen=True, slots=True)
class Forest:
    """The draft trees of one step, one per sequence, concatenated.

    Row 0 of a tree is its root: the pending token, already emitted but not yet in the KV cache. The
    root is not stored; draft nodes are rows 1..n, parents before children.
    """

    offsets: IntArray  # [B + 1] tree i owns nodes offsets[i]:offsets[i + 1]
    token_ids: IntArray  # [M]
    parents: IntArray  # [M] row of the parent within its tree; 0 is the root
    depths: IntArray  # [M] 1 for children of the root
    confidences: FloatArray  # [M] the drafter's probability of the node given its parent
    path_probs: FloatArray  # [M] calibrated probability that the whole path is accepted

    @staticmethod
    def empty(num_trees: int) -> Forest:
        ints, floats = np.empty(0, np.int64), np.empty(0, np.float64)
        return Forest(np.zeros(num_trees + 1, np.int64), ints, ints, ints, floats, floats)

    def spread(self, num_trees: int, places: Sequence[int]) -> Forest:
        """The same trees at `places` (increasing) among `num_trees`; the others are empty."""
        sizes = np.zeros(num_trees, np.int64)
        sizes[list(places)] = self.sizes
        return replace(self, offsets=np.concatenate(([0], np.cumsum(sizes))))

    def only(self, places: Sequence[int]) -> Forest:
        """The trees `places` (increasing)."""
        sizes = self.sizes
        is_kept = np.zeros(self.num_trees, np.bool_)
        is_kept[list(places)] = True
        kept = np.repeat(is_kept, sizes)
        return self._nodes(np.concatenate(([0], np.cumsum(sizes[is_kept]))), kept)

    def cut(self, room: Sequence[int]) -> Forest:
        """Each tree's first `room[i]` nodes; parents come first, so what is left are trees."""
        sizes = np.minimum(self.sizes, np.asarray(room, np.int64))
        if np.array_equal(sizes, self.sizes):
            return self
        starts = np.repeat(self.offsets[:-1], self.sizes)
        kept = np.arange(self.num_nodes) - starts < np.repeat(sizes, self.sizes)
        return self._nodes(np.concatenate(([0], np.cumsum(sizes))), kept)

    def _nodes(self, offsets: IntArray, kept: NDArray[np.bool_]) -> Forest:
        return Forest(
            offsets=offsets,
            token_ids=self.token_ids[kept],
            parents=self.parents[kept],
            depths=self.depths[kept],
            confidences=self.confidences[kept],
            path_probs=self.path_probs[kept],
        )

    @property
    def num_trees(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_nodes(self) -> int:
        return len(self.token_ids)

    @property
    def sizes(self) -> IntArray:
        """Draft nodes per tree. [B]"""
        return self.offsets[1:] - self.offsets[:-1]

    def problem(self, vocab_size: int, max_nodes: int) -> str | None:
        """Why this forest must not be verified, or None.

        A drafter may be another process, of another version or broken; whatever it says costs at
        most a plain step, never a wrong token.
        """
        m = self.num_nodes
        if m > max_nodes:
            return f"{m} nodes where {max_nodes} were allowed"
        if len(self.offsets) < 1 or self.offsets[0] != 0 or self.offsets[-1] != m:
            return "offsets do not cover the nodes"
        if np.any(np.diff(self.offsets) < 0):
            return "offsets decrease"
        columns = (self.parents, self.depths, self.confidences, self.path_probs)
        if any(len(column) != m for column in columns):
            return "columns of different lengths"
        if m == 0:
            return None
        if self.token_ids.min() < 0 or self.token_ids.max() >= vocab_size:
            return "token outside the vocabulary"
        for column in (self.confidences, self.path_probs):
            # Written so that NaN fails too: it would stay in the calibration for good.
            if not (column.min() >= 0.0 and column.max() <= 1.0 + PROBABILITY_SLACK):
                return "a probability outside 0 to 1"
        return self._structure_problem()

    def _structure_problem(self) -> str | None:
        starts = np.repeat(self.offsets[:-1], self.sizes)
        rows = np.arange(self.num_nodes) - starts + 1
        if np.any(self.parents < 0) or np.any(self.parents >= rows):
            return "a parent that does not come before its child"
        # Depth of the parent: 0 for the root, else that of the row it names.
        parent_nodes = starts + np.maximum(self.parents, 1) - 1
        parent_depths = np.where(self.parents == 0, 0, self.depths[parent_nodes])
        if np.any(self.depths != parent_depths + 1):
            return "a depth that is not its parent's plus one"
        return None
