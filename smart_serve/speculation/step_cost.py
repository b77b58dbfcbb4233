"""What a step took, and what it should have taken."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepCost:
    """The parts of a step's time, as the tables divide it; measured, or predicted. In ms."""

    verify_ms: float = 0.0
    draft_ms: float = 0.0
    overhead_ms: float = 0.0
    """All else: host work and the wire."""

    @property
    def total_ms(self) -> float:
        return self.verify_ms + self.draft_ms + self.overhead_ms

    def __add__(self, other: StepCost) -> StepCost:
        return StepCost(
            self.verify_ms + other.verify_ms,
            self.draft_ms + other.draft_ms,
            self.overhead_ms + other.overhead_ms,
        )


@dataclass(frozen=True, slots=True)
class StepPrice:
    """What the tables, as corrected so far, say of a step that has been taken."""

    predicted: StepCost
    plain_ms: float
    """A step of plain decoding at its batch."""
    plain_first_ms: float
    """The same with the step's prefill in it."""
