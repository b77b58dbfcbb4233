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
    """From the question to the drafter until its answer."""

    @property
    def cost(self) -> StepCost:
        """What it took."""
        draft_ms = sum(self.layer_ms)
        overhead_ms = max(0.0, self.step_ms - self.verify_ms - draft_ms)
        return StepCost(self.verify_ms, draft_ms, overhead_ms)

    @property
    def num_tokens(self) -> int:
        """Packed query tokens of the target's forward."""
        return self.batch + self.forest.num_nodes + self.prefill_tokens

    @property
    def is_mostly_decoding(self) -> bool:
        """Whether the cost table speaks of such steps. A server under load hardly ever takes one
        without any prefill."""
        return 2 * self.prefill_tokens <= self.num_tokens
