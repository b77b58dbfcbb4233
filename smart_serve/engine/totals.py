"""What an engine has done since it started: sums that only grow. Whoever exports them takes the
difference to what it took before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from smart_serve.engine.sequence import Sequence
from smart_serve.messages import FinishReason
from smart_serve.speculation.step_cost import StepCost, StepPrice
from smart_serve.speculation.step_observation import StepObservation


@dataclass(slots=True)
class EngineTotals:
    """Owned by the engine; others get copies. Times in ms."""

    steps: int = 0
    drafted_steps: int = 0
    """Of those, steps that verified draft nodes."""
    tokens: int = 0
    """Emitted."""
    accepted: int = 0
    rejected: int = 0
    """Draft tokens."""
    expected: float = 0.0
    """Draft tokens that calibrated probabilities said would be accepted. Trees that were drawn
    are not counted: their probabilities are the drafter's."""
    judged: int = 0
    """Draft tokens accepted of the trees that `expected` speaks of."""
    draft_failures: int = 0
    """Steps to which the drafter gave no trees that could be used."""
    tree_depth: int = 0
    """Over drafted steps, the depth of the deepest node."""

    total_ms: float = 0.0
    """All steps, and what the controller took after them."""
    draft_ms: float = 0.0
    """The drafter's passes."""
    wire_ms: float = 0.0
    """What else the drafter's answers took: the hop, the wait behind other targets, and, where
    the drafter is remote, the policy's work there."""
    verify_ms: float = 0.0
    """The target's forward passes, prefill included."""
    controller_ms: float = 0.0

    measured: StepCost = field(default_factory=StepCost)
    predicted: StepCost = field(default_factory=StepCost)
    """Before the step was learnt from; like `measured` over mostly decoding steps only."""
    plain_ms: float = 0.0
    """What the same tokens would have cost in plain decoding, by the corrected tables."""

    prompt_tokens: int = 0
    """Of sequences that have ended, as the next two."""
    cached_tokens: int = 0
    pre_emptions: int = 0
    ended: dict[FinishReason, int] = field(default_factory=dict)

    def add_step(self, seen: StepObservation, price: StepPrice | None, learn_ms: float) -> None:
        """`price`: None where no sequence was decoding. `learn_ms`: what the controller took after
        the step."""
        self.steps += 1
        policy_ms = seen.growth.policy_ms if seen.growth is not None else 0.0
        draft_ms = seen.draft_ms
        self.total_ms += seen.step_ms + learn_ms
        self.draft_ms += draft_ms
        self.wire_ms += max(0.0, seen.propose_ms - draft_ms - policy_ms)
        self.verify_ms += seen.verify_ms
        self.controller_ms += seen.plan_ms + policy_ms + learn_ms
        self.draft_failures += seen.draft_failed
        num_accepted = int(np.count_nonzero(seen.accepted))
        if seen.forest.num_nodes > 0:
            self._add_trees(seen, num_accepted)
        if price is not None and seen.is_mostly_decoding:
            self.measured += seen.cost
            self.predicted += price.predicted
            # Plain decoding takes a step for a token of every sequence, and does the prefill in one
            # of them.
            num_steps = (seen.batch + num_accepted) / seen.all_decoding
            self.plain_ms += price.plain_first_ms + (num_steps - 1) * price.plain_ms

    def add_ended(self, sequence: Sequence) -> None:
        """A sequence that is over; its prompt counts if it ever ran."""
        if sequence.started_s is not None:
            self.prompt_tokens += sequence.num_prompt
        self.cached_tokens += sequence.tally.cached_tokens
        self.pre_emptions += sequence.tally.pre_emptions
        reason = sequence.finish_reason or "cancelled"
        self.ended[reason] = self.ended.get(reason, 0) + 1

    def split_ms(self) -> dict[str, float]:
        """Where the time of all steps went."""
        parts = {
            "draft": self.draft_ms,
            "wire": self.wire_ms,
            "verify": self.verify_ms,
            "controller": self.controller_ms,
        }
        return {**parts, "other": max(0.0, self.total_ms - sum(parts.values()))}

    def copy(self) -> EngineTotals:
        return replace(self, ended=dict(self.ended))

    def _add_trees(self, seen: StepObservation, num_accepted: int) -> None:
        self.drafted_steps += 1
        self.accepted += num_accepted
        self.rejected += seen.forest.num_nodes - num_accepted
        self.tree_depth += int(np.maximum.reduce(seen.forest.depths))
        if seen.growth is not None and seen.growth.laws is None:
            self.expected += float(np.add.reduce(seen.forest.path_probs))
            self.judged += num_accepted
