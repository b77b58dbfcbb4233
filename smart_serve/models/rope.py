"""Positions on the three axes of M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from smart_serve.messages import ImageSpan

Ints = NDArray[np.int64]


class RopePositions:
    """Time, row and column of every token of one sequence, by its index.

    Text advances all axes together. A picture's tokens share one time; its rows and columns count
    from there, and the text behind it goes on after the larger of the two. So behind each picture
    a token's position is its index plus a constant, for the answer as well as for the prompt.
    """

    def __init__(self, spans: Sequence[ImageSpan]) -> None:
        """`spans`: in the order of their places, each with a grid of as many cells as tokens."""
        starts, ends, columns, shifts = [], [0], [1], [0]
        for span in spans:
            assert span.grid is not None
            starts.append(span.start)
            ends.append(span.start + span.length)
            columns.append(span.grid[1])
            shifts.append(shifts[-1] + max(span.grid) - span.length)
        self._starts: Ints = np.asarray(starts, np.int64)
        # By the number of pictures that have begun, so entry 0 is of the text before them all.
        self._ends: Ints = np.asarray(ends, np.int64)
        self._columns: Ints = np.asarray(columns, np.int64)
        self._shifts: Ints = np.asarray(shifts, np.int64)

    def at(self, indices: Ints) -> Ints:
        """Positions [3, n] of the tokens at `indices` [n]: a chunk, or a tree from its root, so
        that the first is the least."""
        positions = np.empty((3, len(indices)), np.int64)
        if indices[0] >= self._ends[-1]:  # nearly every step: behind the last picture
            positions[:] = indices + self._shifts[-1]
            return positions
        begun = np.searchsorted(self._starts, indices, side="right")
        positions[:] = indices + self._shifts[begun]
        inside = np.flatnonzero(indices < self._ends[begun])
        picture = begun[inside]
        start = self._starts[picture - 1]
        cells = np.divmod(indices[inside] - start, self._columns[picture])
        positions[:, inside] = start + self._shifts[picture - 1]
        positions[1:, inside] += np.stack(cells)
        return positions
