"""What a step takes besides the passes that are measured by themselves: host work and the wire."""

from __future__ import annotations

WEIGHT = 0.1
"""Of one step."""
FIRST_STEPS = 5
"""Steps whose lower median stands before the average begins: a far drafter is known as such after
one step, and a stalled first step is forgotten at the second."""


class Overhead:
    """Moving average in ms, robust against stalls."""

    def __init__(self) -> None:
        self.ms = 0.0
        self._first: list[float] = []

    def observe(self, ms: float) -> None:
        """One step's."""
        if len(self._first) < FIRST_STEPS:
            self._first.append(ms)
            self.ms = sorted(self._first)[(len(self._first) - 1) // 2]
            return
        # A stall is not overhead: cap what one step can add.
        self.ms += WEIGHT * (min(ms, 2.0 * self.ms + 1.0) - self.ms)
