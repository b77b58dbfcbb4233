"""What the drafter is asked for some of a step's sequences, and the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from smart_serve.drafters.protocol import DraftInput, Proposal
from smart_serve.engine.drafted import Drafted
from smart_serve.engine.sequence import Sequence
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.plan import GrowthPlan


@dataclass(frozen=True, slots=True)
class Question:
    """Asked, and perhaps not answered yet."""

    plan: GrowthPlan
    asking: tuple[Sequence, ...]
    inputs: tuple[DraftInput, ...]
    wait: Callable[[], Proposal]
    """For the answer, once."""
    asked_s: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True, slots=True)
class Answer:
    """Trees for those who asked."""

    question: Question
    proposal: Proposal
    turnaround_ms: float | None
    """From question to answer, if it was asked during the step before."""

    def among(self, decodes: tuple[Sequence, ...], max_nodes: int, drafted: Drafted) -> Drafted:
        """`drafted` with the trees of those of `decodes` who asked, if these are no more than
        `max_nodes`."""
        asking = self.question.asking
        places = {sequence: place for place, sequence in enumerate(decodes)}
        # Since it was asked a sequence may have ended, or lost its place.
        still = [i for i, sequence in enumerate(asking) if sequence in places]
        growth = _only(self.proposal.growth, still, len(asking))
        if not still or growth.forest.num_nodes > max_nodes:
            return drafted
        growth = growth.spread(len(decodes), [places[asking[i]] for i in still])
        return replace(
            drafted,
            forest=growth.forest,
            policy=self.question.plan.policy,
            growth=growth,
            layer_rows=self.proposal.layer_rows,
            layer_ms=self.proposal.layer_ms,
            turnaround_ms=self.turnaround_ms,
        )


def _only(growth: Growth, places: list[int], num_trees: int) -> Growth:
    """The trees at `places`, numbered anew."""
    if len(places) == num_trees:
        return growth
    considered = None if growth.considered is None else growth.considered.only(places)
    laws = None if growth.laws is None else growth.laws.only(places, num_trees)
    return replace(growth, forest=growth.forest.only(places), laws=laws, considered=considered)
