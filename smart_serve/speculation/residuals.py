"""Measured over predicted: how a cost table is corrected while running."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from smart_serve.speculation.tree import FloatArray

WEIGHT = 0.05
"""Of one observation, after the first ones; the memory is about twenty steps of a region."""
FEW = 5
"""Observations of a region from which it goes its own way; before, it does so in part."""
CLIP = 4.0
"""One stalled step (a page fault, a neighbour's burst) must not swing the controller. The other way
there is no such thing: a step that was faster than its price shows a price that is too high."""
LEAST = 1e-3
"""Keeps the logarithm finite."""
REGIONS = 32
"""Powers of two of packed tokens."""


class Residuals:
    """Moving average of measured/predicted per region of packed tokens (powers of two)."""

    def __init__(self) -> None:
        # Regions hardly seen yet move along with the others: the machine as a whole is slower or
        # faster than when it was measured, and one price corrected without the others would tip
        # every comparison. So would one that is corrected by the others although it was seen.
        self._common = 0.0
        self._own: dict[int, float] = {}
        """Mean log-ratios."""
        self._counts: Counter[int] = Counter()

    def observe(self, num_tokens: float, measured_ms: float, predicted_ms: float) -> None:
        """`predicted_ms` is the uncorrected table's."""
        ratio = min(max(measured_ms / max(predicted_ms, 1e-6), LEAST), CLIP)
        region = _region(num_tokens)
        self._counts[region] += 1
        count = self._counts[region]
        own = self._own.get(region, 0.0)
        self._own[region] = own + max(WEIGHT, 1.0 / count) * (math.log(ratio) - own)
        # The first few count for more: a table that was measured on a busy machine is far off.
        self._common += max(WEIGHT, 1.0 / (count + 1)) * (math.log(ratio) - self._common)

    def factors(self, num_tokens: FloatArray) -> FloatArray:
        """Correction [n] for predictions at `num_tokens` [n]; linear between region centres."""
        place = np.log2(np.maximum(num_tokens, 1.0))
        log_ratio = [self._at(region) for region in range(REGIONS)]
        corrected: FloatArray = np.exp(np.interp(place, np.arange(REGIONS), log_ratio))
        return corrected

    def factor(self, num_tokens: float) -> float:
        """The same for one step."""
        place = math.log2(max(num_tokens, 1.0))
        left = min(int(place), REGIONS - 2)
        right_weight = min(place - left, 1.0)
        return math.exp(self._at(left) * (1 - right_weight) + self._at(left + 1) * right_weight)

    def _at(self, region: int) -> float:
        own = min(1.0, self._counts[region] / FEW)
        return own * self._own.get(region, 0.0) + (1.0 - own) * self._common


def _region(num_tokens: float) -> int:
    return min(REGIONS - 1, max(0, round(math.log2(max(num_tokens, 1.0)))))
