"""What steps cost: measured tables, corrected by what steps have taken since."""

from __future__ import annotations

import numpy as np

from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.overhead import Overhead
from smart_serve.speculation.residuals import Residuals
from smart_serve.speculation.step_cost import StepCost, StepPrice
from smart_serve.speculation.step_observation import StepObservation
from smart_serve.speculation.tree import IntArray

PROMPT_TOKENS = 512
"""A usual prompt with a picture (LLaVA's has 576 tokens), and the end of most tables."""
WAITED = 0.05
"""Of the time from a question to its answer: who waited for more did not find it there."""


class Prices:
    """Owned by one controller."""

    def __init__(self, costs: CostTable, layer_cost: Curve | None) -> None:
        self._costs = costs
        self.layer_cost = layer_cost
        """One pass of the drafter, by rows, as measured; None: there is no drafter."""
        self._verify_residuals = Residuals()
        self._draft_residuals = Residuals()
        self._overhead = {True: Overhead(), False: Overhead()}
        """By whether the step drafted."""

    @property
    def stairs(self) -> tuple[int, ...]:
        """Numbers of tokens to which a forward is padded."""
        return self._costs.stairs

    @property
    def wire_ms(self) -> float:
        """What a drafted step takes besides its passes, beyond what a plain one does."""
        return max(0.0, self._overhead[True].ms - self._overhead[False].ms)

    def plain_step_ms(self, batch: int, context: float, prefill_tokens: int = 0) -> float:
        """Predicted step of plain decoding at this batch, host time included."""
        verify = self._verify_ms(batch + prefill_tokens, batch, context)
        return verify + self._overhead[False].ms

    def prompt_token_ms(self, context: float) -> float:
        """What one more token of a long prompt costs, by the corrected table."""
        long = self._verify_ms(PROMPT_TOKENS, 1, context)
        return (long - self._verify_ms(1, 1, context)) / (PROMPT_TOKENS - 1)

    def of_step(self, seen: StepObservation) -> StepPrice:
        """To be asked for before `observe`. One of the batch's sequences at least is decoding."""
        batch = seen.all_decoding
        plain_ms = plain_first_ms = self.plain_step_ms(batch, seen.context)
        if seen.prefill_tokens:
            plain_first_ms = self.plain_step_ms(batch, seen.context, seen.prefill_tokens)
        return StepPrice(self.predicted(seen), plain_ms, plain_first_ms)

    def predicted(self, seen: StepObservation) -> StepCost:
        """What the tables say of a step that has been taken."""
        verify = self._verify_ms(seen.num_tokens, seen.batch, seen.context)
        if seen.growth is None or self.layer_cost is None:
            return StepCost(verify, 0.0, self._overhead[False].ms)
        layers = sum(
            self.layer_cost(rows) * self._draft_residuals.factor(rows) for rows in seen.layer_rows
        )
        if seen.turnaround_ms is None:
            return StepCost(verify, layers, self._overhead[True].ms)
        # What the last step, which was like this one, did not hide.
        shown = max(0.0, layers + self.wire_ms - verify)
        overhead_ms = self._overhead[False].ms + max(0.0, shown - layers)
        return StepCost(verify, min(layers, shown), overhead_ms)

    def verify_knot_ms(self, knots: IntArray, batch: int, context: float) -> list[float]:
        """A step with each of these numbers of draft nodes, but for the drafting. [n]"""
        tokens = batch + knots.astype(np.float64)
        verify = self._costs.verify_ms(tokens, batch, context)
        verify = np.maximum.accumulate(verify * self._verify_residuals.factors(tokens))
        return [ms + self._overhead[False].ms for ms in verify.tolist()]

    def draft_curve(self, factor: float = 1.0) -> Curve:
        """One pass of the drafter, where drafters are `factor` times as slow as measured."""
        assert self.layer_cost is not None
        x = np.asarray(self.layer_cost.x)
        y = np.asarray(self.layer_cost.y) * self._draft_residuals.factors(x) * factor
        return Curve.monotone(self.layer_cost.x, y.tolist())

    def observe(self, seen: StepObservation) -> None:
        """Correct the tables by one step: by those of its parts that had the processors to
        themselves (see `speculation.overlap`)."""
        if seen.is_mostly_decoding and seen.left_out == 0:
            table = self._costs.step_ms(seen.num_tokens, seen.batch, seen.context)
            self._verify_residuals.observe(seen.num_tokens, seen.verify_ms, table)
        if self.layer_cost is not None and seen.turnaround_ms is None:
            for rows, measured in zip(seen.layer_rows, seen.layer_ms, strict=True):
                self._draft_residuals.observe(rows, measured, self.layer_cost(rows))
        if seen.turnaround_ms is not None:
            self._observe_hop(seen, seen.turnaround_ms)
        elif seen.left_out == 0:
            self._overhead[seen.growth is not None].observe(seen.cost.overhead_ms)

    def _observe_hop(self, seen: StepObservation, turnaround_ms: float) -> None:
        """Of trees that were drafted during the last step. An answer that was not waited for may
        have been there for long: that step's end says only how long it took at most."""
        drafted, plain = self._overhead[True], self._overhead[False]
        overhead_ms = plain.ms + max(0.0, turnaround_ms - sum(seen.layer_ms))
        was_there = seen.propose_ms < WAITED * turnaround_ms
        drafted.observe(min(overhead_ms, drafted.ms) if was_there else overhead_ms)

    def _verify_ms(self, num_tokens: int, batch: int, context: float) -> float:
        table = self._costs.step_ms(num_tokens, batch, context)
        return table * self._verify_residuals.factor(num_tokens)
