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

PROMISING = 1.005
"""A prediction that rises by more than this after a probe: the drafter is getting better."""
PLAIN_LOOK = 256
"""Drafted steps between two plain ones, which keep the price of plain decoding true. At a speedup
of 2 it costs 0.2 %."""


class Decision(Enum):
    DRAFT = auto()
    PROBE = auto()
    """Draft although it does not seem to pay, to see whether that still holds."""
    PLAIN = auto()


class Fallback:
    """State of one engine's switch between drafting and plain decoding."""

    def __init__(self) -> None:
        self._drafting = True
        self._region = 0
        self._steps = 0
        """Since the last probe, or the last look at plain decoding."""
        self._wait = FIRST_PROBE
        self._speedup_at_probe = 0.0

    def decide(self, batch: int, speedup: float) -> Decision:
        """What to do in this step; `speedup` is the predicted gain of the best tree over plain."""
        if batch.bit_length() != self._region:
            # Another batch is another question: what was learnt of probing no longer counts. Only
            # to the power of two, or requests that come and go would be probed for all the time.
            self._region, self._wait = batch.bit_length(), FIRST_PROBE
        was_drafting = self._drafting
        self._drafting = speedup > (LEAVE if was_drafting else ENTER)
        if self._drafting is not was_drafting:
            self._steps, self._wait, self._speedup_at_probe = 0, FIRST_PROBE, speedup
        self._steps += 1
        return self._draft() if self._drafting else self._decode_plainly(speedup)

    def _draft(self) -> Decision:
        if self._steps < PLAIN_LOOK:
            return Decision.DRAFT
        self._steps = 0
        return Decision.PLAIN

    def _decode_plainly(self, speedup: float) -> Decision:
        if speedup > PROMISING * self._speedup_at_probe:
            # The last probe did better than was thought: look again soon.
            self._wait, self._speedup_at_probe = FIRST_PROBE, speedup
        if self._steps < self._wait:
            return Decision.PLAIN
        self._steps, self._wait = 0, min(2 * self._wait, LAST_PROBE)
        self._speedup_at_probe = speedup
        return Decision.PROBE
