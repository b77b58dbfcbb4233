"""The engine's side of drafting: which sequences ask, under which plan, and what comes back."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

import torch

from smart_serve.drafters.protocol import (
    DraftBatch,
    Drafter,
    DrafterUnavailable,
    DraftInput,
    Proposal,
)
from smart_serve.engine.sequence import Sequence
from smart_serve.speculation.controller import SpeculationController
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import Forest

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Drafted:
    """Trees for all decoding sequences of a step, and what growing them was like."""

    forest: Forest
    policy: str = "off"
    growth: Growth | None = None
    layer_rows: tuple[int, ...] = ()
    layer_ms: tuple[float, ...] = ()
    elapsed_ms: float = 0.0

    def with_forest(self, forest: Forest) -> Drafted:
        return replace(self, forest=forest)


class Drafting:
    """Asks the drafter once per step for the whole batch. Owned by the engine.

    Whatever goes wrong here costs a plain step and a warning, never a token.
    """

    def __init__(
        self,
        drafter: Drafter | None,
        controller: SpeculationController,
        default_policy: str,
        vocab_size: int,
    ) -> None:
        self.drafter = drafter
        self._controller = controller
        self._default_policy = default_policy
        self._vocab_size = vocab_size

    def wants(self, sequence: Sequence) -> bool:
        """Whether committed tokens must be kept for the drafter."""
        return self.drafter is not None and self._policy(sequence) != "off"

    def propose(self, decodes: tuple[Sequence, ...], context: float) -> Drafted:
        """Trees for `decodes`; empty ones where the plan says not to draft."""
        plain = Drafted(Forest.empty(len(decodes)))
        places = [
            i for i, sequence in enumerate(decodes) if self.wants(sequence) and _can_draft(sequence)
        ]
        if not places or self.drafter is None:
            return plain
        # One call for the batch: where requests name different policies, the oldest one's holds.
        policy = self._policy(decodes[places[0]])
        places = [i for i in places if self._policy(decodes[i]) == policy]
        asking = [decodes[i] for i in places]
        catch_up_rows = sum(len(sequence.inbox.token_ids) for sequence in asking)
        plan = self._controller.plan(policy, len(decodes), context, catch_up_rows)
        if plan is None:
            return plain
        clock = time.perf_counter()
        proposal = self._ask(self.drafter, asking, plan)
        if proposal is None:
            return plain
        return Drafted(
            forest=proposal.growth.forest.spread(len(decodes), places),
            policy=policy,
            growth=proposal.growth,
            layer_rows=proposal.layer_rows,
            layer_ms=proposal.layer_ms,
            elapsed_ms=1e3 * (time.perf_counter() - clock),
        )

    def remember(
        self, sequence: Sequence, first: int, hidden: torch.Tensor, image_token_id: int | None
    ) -> None:
        """Keep newly committed positions first .. first + n - 1 with their hidden states [n, h]."""
        if not self.wants(sequence) or sequence.inbox.is_lost:
            return
        next_ids = sequence.tokens[first + 1 : first + 1 + len(hidden)]
        vectors = hidden
        if image_token_id is not None and image_token_id in next_ids:
            vectors = hidden.clone()
            _place_images(vectors, sequence, first + 1)
        sequence.inbox.add(next_ids, vectors)

    def forget(self, sequence: Sequence) -> None:
        """The sequence left the engine."""
        if self.drafter is None or not sequence.inbox.was_sent:
            return
        try:
            self.drafter.close([sequence.id])
        except DrafterUnavailable as error:
            _LOG.warning("drafter unavailable: %s", error.message)

    def _ask(self, drafter: Drafter, asking: list[Sequence], plan: GrowthPlan) -> Proposal | None:
        inputs = []
        for sequence in asking:
            start, token_ids, vectors = sequence.inbox.take()
            inputs.append(DraftInput(sequence.id, start, token_ids, vectors))
        try:
            proposal = drafter.propose(DraftBatch(tuple(inputs), plan))
        except DrafterUnavailable as error:
            _LOG.warning("drafter unavailable, decoding plainly: %s", error.message)
            for sequence in asking:
                sequence.inbox.lose()
            return None
        problem = proposal.problem(len(asking), self._vocab_size, plan)
        if problem is not None:
            _LOG.warning("the drafter's answer is refused: %s", problem)
            return None
        for index in proposal.unknown:
            asking[index].inbox.lose()
        return proposal

    def _policy(self, sequence: Sequence) -> str:
        return sequence.request.sampling.policy or self._default_policy


def _can_draft(sequence: Sequence) -> bool:
    """The last token of an answer needs no tree."""
    left = sequence.request.sampling.max_tokens - sequence.num_generated
    return left > 1 and not sequence.inbox.is_lost and len(sequence.inbox.token_ids) > 0


def _place_images(vectors: torch.Tensor, sequence: Sequence, first: int) -> None:
    """Where x_{t+1} is an image token its projected embedding stands in h_t's place."""
    for span, features in zip(sequence.request.image_spans, sequence.image_features, strict=True):
        begin = max(span.start, first)
        end = min(span.start + span.length, first + len(vectors))
        if begin < end:
            part = features[begin - span.start : end - span.start]
            vectors[begin - first : end - first] = part.to(vectors)


def mean_context(decodes: tuple[Sequence, ...]) -> float:
    """Committed tokens per sequence, on average."""
    return sum(sequence.num_computed for sequence in decodes) / max(1, len(decodes))
