"""How much of the speedup that was predicted for drafting its steps then keep.

The prediction is made for trees of typical shape; what is grown, and what that costs, differs by
some per cent, always to the same side. Near a speedup of 1 these decide.
"""

from __future__ import annotations

import math

WEIGHT = 0.05
"""Of one drafted step."""
CLIP = 1.5
"""One stalled step must not end drafting."""
FORGET = 0.99
"""Per look while decoding plainly: in some 500 steps drafting gets half of its credit back, so that
one bad time does not end it for good."""


class Promises:
    """Kept over promised speedup, per batch size (powers of two). Owned by one controller."""

    def __init__(self) -> None:
        self._log_kept: dict[int, float] = {}

    def factor(self, batch: int) -> float:
        """What a prediction for this batch is to be multiplied by."""
        return math.exp(self._log_kept.get(batch.bit_length(), 0.0))

    def observe(self, batch: int, promised: float, kept: float) -> None:
        """Speedups of a drafted step."""
        ratio = min(max(kept / max(promised, 1e-9), 1 / CLIP), CLIP)
        old = self._log_kept.get(batch.bit_length(), 0.0)
        self._log_kept[batch.bit_length()] = old + WEIGHT * (math.log(ratio) - old)

    def forget(self, batch: int) -> None:
        """Nothing was drafted, so nothing is known of how it is now."""
        if batch.bit_length() in self._log_kept:
            self._log_kept[batch.bit_length()] *= FORGET
