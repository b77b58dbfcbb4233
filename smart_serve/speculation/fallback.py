"""Whether to speculate at all: a margin, hysteresis, and a probe now and then."""

from __future__ import annotations

from enum import Enum, auto

ENTER = 1.03
"""Predicted speedup at which drafting starts: below, the prediction's own error decides."""
LEAVE = 1.0
"""Predicted speedup under which drafting stops."""
FIRST_PROBE = 16
"""Plain steps before the first probe."""
LAST_PROBE = 512
"""Longest wait between probes: a probe that fails costs about one step, so ≤ 0.5 %."""


class Decision(Enum):
    DRAFT = auto()
    PROBE = auto()
    """Draft although it does not seem to pay, to see whether that still holds."""
    PLAIN = auto()


class Fallback:
    """State of one engine's switch between drafting and plain decoding."""

    def __init__(self) -> None:
        self._drafting = True
        self._batch = 0
        self._plain_steps = 0
        self._wait = FIRST_PROBE

    def decide(self, batch: int, speedup: float) -> Decision:
        """What to do in this step; `speedup` is the predicted gain of the best tree over plain."""
        if batch != self._batch:
            # Another batch is another question: what was learnt of probing no longer counts.
            self._batch, self._wait = batch, FIRST_PROBE
        self._drafting = speedup > (LEAVE if self._drafting else ENTER)
        if self._drafting:
            self._plain_steps, self._wait = 0, FIRST_PROBE
            return Decision.DRAFT
        self._plain_steps += 1
        if self._plain_steps < self._wait:
            return Decision.PLAIN
        self._plain_steps, self._wait = 0, min(2 * self._wait, LAST_PROBE)
        return Decision.PROBE
