"""Whether to speculate at all: a margin, hysteresis, and a probe now and then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

ENTER = 1.03
"""Predicted speedup at which drafting starts: below, the prediction's own error decides."""
LEAVE = 1.0
"""Predicted speedup under which drafting stops."""
FIRST_PROBE = 16
"""Plain steps before the first probe."""
LAST_PROBE = 512
"""Longest wait between probes that cost a step each: ≤ 0.2 %."""
PROBE_SHARE = 0.01
"""Of the time may go into probes that fail. A far drafter, or one that has much to catch up with,
costs many plain steps a probe; it is asked as much more seldom."""
REST_STEPS = 8
"""Plain steps between two looks at what drafting would bring. A look takes a tenth of a millisecond
and a plain step may take three."""
PROMISING = 1.005
"""A prediction that rises by more than this after a probe: the drafter is getting better."""
LOOK_SHARE = 0.002
"""Of the speed may go into plain steps among the drafted ones, which keep the price of plain
decoding true. At a speedup of 2 that is one in 250; near 1, where it matters most, they are nearly
free, and come often."""
FIRST_LOOK = 8
"""Drafted steps between two plain ones, at least."""


class Decision(Enum):
    DRAFT = auto()
    PROBE = auto()
    """Draft although it does not seem to pay, to see whether that still holds."""
    PLAIN = auto()


@dataclass(frozen=True, slots=True)
class Outlook:
    """What drafting promises in this step, before anything is drafted."""

    speedup: float
    """Of the best tree over plain decoding."""
    caught_up_speedup: float
    """The same for a drafter with nothing to catch up with: what a probe teaches shows here, while
    `speedup` also rises when the backlog is gone and falls as it comes back."""
    probe_price: float
    """Plain steps that a probe costs if nothing of it is accepted."""

    def corrected(self, factor: float) -> Outlook:
        """With the speedup multiplied. What a probe teaches is told from the raw prediction."""
        return replace(self, speedup=factor * self.speedup)


class Fallback:
    """State of one engine's switch between drafting and plain decoding."""

    def __init__(self) -> None:
        self._drafting = True
        self._region = 0
        self._steps = 0
        """Since the last probe, or the last look at plain decoding."""
        self._wait = FIRST_PROBE
        self._speedup_at_probe = 0.0

    @property
    def is_drafting(self) -> bool:
        return self._drafting

    def rests(self, batch: int) -> bool:
        """Whether this step is plain without another look, as the last one was; it counts."""
        if self._drafting or batch.bit_length() != self._region or self._steps % REST_STEPS == 0:
            return False
        self._steps += 1
        return True

    def decide(self, batch: int, outlook: Outlook) -> Decision:
        """What to do in this step."""
        if batch.bit_length() != self._region:
            # Another batch is another question: what was learnt of probing no longer counts. Only
            # to the power of two, or requests that come and go would be probed for all the time.
            self._region, self._wait = batch.bit_length(), FIRST_PROBE
        was_drafting = self._drafting
        self._drafting = outlook.speedup > (LEAVE if was_drafting else ENTER)
        if self._drafting is not was_drafting:
            self._steps, self._wait = 0, FIRST_PROBE
            self._speedup_at_probe = outlook.caught_up_speedup
        self._steps += 1
        return self._draft(outlook) if self._drafting else self._decode_plainly(outlook)

    def _draft(self, outlook: Outlook) -> Decision:
        if self._steps < max(FIRST_LOOK, (1.0 - 1.0 / outlook.speedup) / LOOK_SHARE):
            return Decision.DRAFT
        self._steps = 0
        return Decision.PLAIN

    def _decode_plainly(self, outlook: Outlook) -> Decision:
        if outlook.caught_up_speedup > PROMISING * self._speedup_at_probe:
            # The last probe did better than was thought: look again soon.
            self._wait, self._speedup_at_probe = FIRST_PROBE, outlook.caught_up_speedup
        if self._steps < max(self._wait, outlook.probe_price / PROBE_SHARE):
            return Decision.PLAIN
        self._steps, self._wait = 0, min(2 * self._wait, LAST_PROBE)
        self._speedup_at_probe = outlook.caught_up_speedup
        return Decision.PROBE
