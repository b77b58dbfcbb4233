"""What a controller is told after a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smart_serve.speculation.growth import Growth
from smart_serve.speculation.step_cost import StepCost
from smart_serve.speculation.tree import Forest


@dataclass(frozen=True, slots=True)
class StepObservation:
    """What one step did and took."""

    policy: str
    batch: int
    context: float
    forest: Forest
    accepted: NDArray[np.bool_]  # [M]
    growth: Growth | None  # None: nothing was drafted
    layer_rows: tuple[int, ...]
    layer_ms: tuple[float, ...]
    verify_ms: float
    step_ms: float
    prefill_tokens: int = 0
    """Prompt tokens in the same forward."""
    plan_ms: float = 0.0
    """The controller's work before the step."""
    propose_ms: float = 0.0
    """What the step spent on asking the drafter and on waiting for its answer."""
    draft_failed: bool = False
    """Trees were asked for and did not come, or could not be used."""
    left_out: int = 0
    """Decoding sequences beside the batch, which were drafted for meanwhile."""
    turnaround_ms: float | None = None
    """From the question to its answer, where the trees were drafted during the step before this
    one; None: they were not."""

    @property
    def all_decoding(self) -> int:
        """Sequences, whether this step was theirs or not."""
        return self.batch + self.left_out

    @property
    def draft_ms(self) -> float:
        """What drafting added to the step: all of it, or what was still missing as it began."""
        drafting = sum(self.layer_ms)
        return drafting if self.turnaround_ms is None else min(drafting, self.propose_ms)

    @property
    def cost(self) -> StepCost:
        """What it took."""
        overhead_ms = max(0.0, self.step_ms - self.verify_ms - self.draft_ms)
        return StepCost(self.verify_ms, self.draft_ms, overhead_ms)

    @property
    def num_tokens(self) -> int:
        """Packed query tokens of the target's forward."""
        return self.batch + self.forest.num_nodes + self.prefill_tokens

    @property
    def is_mostly_decoding(self) -> bool:
        """Whether the cost table speaks of such steps. A server under load hardly ever takes one
        without any prefill."""
        return 2 * self.prefill_tokens <= self.num_tokens
