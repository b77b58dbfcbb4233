"""The learning-rate schedule, over a number of steps or a stretch of wall-clock time."""

import math
import time

WARMUP_STEPS = 60
FINAL_SHARE = 0.02


class Schedule:
    """Linear warm-up, then a cosine down to a fiftieth of the peak.

    On a shared machine steps take as long as they take; with `minutes` the cosine follows the
    clock instead of the steps, and training ends on time with the rate where it should be.
    """

    def __init__(self, peak: float, steps: int, minutes: float | None = None) -> None:
        self._peak = peak
        self._steps = steps
        self._minutes = minutes
        self._began = time.monotonic()

    def elapsed_s(self) -> float:
        """Seconds since the schedule was made."""
        return time.monotonic() - self._began

    def done(self, step: int) -> float:
        """Share of the training that lies behind before this step; 1 or more means stop."""
        if self._minutes is None:
            return step / self._steps
        return self.elapsed_s() / (60 * self._minutes)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.done(step))))
        decayed = FINAL_SHARE + (1 - FINAL_SHARE) * cosine
        return self._peak * min(1.0, (step + 1) / WARMUP_STEPS) * decayed
