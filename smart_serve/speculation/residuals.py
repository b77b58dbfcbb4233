"""Measured over predicted: how a cost table is corrected while running."""

from __future__ import annotations

import math

import numpy as np

from smart_serve.speculation.tree import FloatArray

WEIGHT = 0.05
"""Of one observation, after the first ones; the memory is about twenty steps of a region."""
FEW = 5
"""Observations of a region under which it follows the others."""
CLIP = 4.0
"""One stalled step (a page fault, a neighbour's burst) must not swing the controller."""


class Residuals:
    """Moving average of measured/predicted per region of packed tokens (powers of two)."""

    def __init__(self) -> None:
        self._log_ratio = np.zeros(32)
        self._count = np.zeros(32, np.int64)

    def observe(self, num_tokens: float, measured_ms: float, predicted_ms: float) -> None:
        """`predicted_ms` is the uncorrected table's."""
        ratio = min(max(measured_ms / max(predicted_ms, 1e-6), 1 / CLIP), CLIP)
        count = int(self._count[_region(num_tokens)])
        self._count[_region(num_tokens)] += 1
        # Regions hardly seen yet move along: the machine as a whole is slower or faster than when
        # it was measured, and one price corrected without the others would tip every comparison.
        moved = self._count < FEW
        moved[_region(num_tokens)] = True
        # The first few count for more: a table that was measured on a busy machine is far off.
        weight = max(WEIGHT, 1.0 / (count + 2))
        self._log_ratio[moved] += weight * (math.log(ratio) - self._log_ratio[moved])

    def factors(self, num_tokens: FloatArray) -> FloatArray:
        """Correction [n] for predictions at `num_tokens` [n]; linear between region centres."""
        place = np.log2(np.maximum(num_tokens, 1.0))
        corrected: FloatArray = np.exp(np.interp(place, np.arange(32), self._log_ratio))
        return corrected

    def factor(self, num_tokens: float) -> float:
        """The same for one step."""
        place = math.log2(max(num_tokens, 1.0))
        left = min(int(place), 30)
        right_weight = min(place - left, 1.0)
        mean = self._log_ratio[left] * (1 - right_weight) + self._log_ratio[left + 1] * right_weight
        return math.exp(mean)


def _region(num_tokens: float) -> int:
    return min(31, max(0, round(math.log2(max(num_tokens, 1.0)))))
