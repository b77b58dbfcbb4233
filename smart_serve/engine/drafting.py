"""The engine's side of drafting: which sequences ask, under which plan, and what comes back."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from kernels.sample import counter_uniform
from smart_serve.config import sampled_shape
from smart_serve.drafters.protocol import (
    DraftBatch,
    Drafter,
    DrafterUnavailable,
    Proposal,
)
from smart_serve.engine.draft_feed import DraftFeed
from smart_serve.engine.scheduler import StepWork
from smart_serve.engine.sequence import Sequence
from smart_serve.models.target import TargetModel
from smart_serve.paging.kv_cache import KvCache
from smart_serve.speculation.controller import SpeculationController
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.step_observation import StepObservation
from smart_serve.speculation.tree import FloatArray, Forest

_LOG = logging.getLogger(__name__)
DRAFT_STREAM = 0x3C6EF372FE94F82B
"""Keeps the drafter's draws apart from the target's, which the same seed and position key. Any
constant would do."""
NO_ROOM_TOKENS = 64
"""Tokens that a sequence goes on for without drafts after the drafter had no room for it."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """Trees for all decoding sequences of a step, and what growing them was like."""

    forest: Forest
    policy: str = "off"
    growth: Growth | None = None
    layer_rows: tuple[int, ...] = ()
    layer_ms: tuple[float, ...] = ()
    plan_ms: float = 0.0
    """The controller's decision."""
    propose_ms: float = 0.0
    """From the question to the drafter until its answer."""

    @property
    def laws(self) -> DraftLaws | None:
        """What the trees were drawn from, if they were."""
        return None if self.growth is None else self.growth.laws

    @property
    def wanted_nodes(self) -> list[int]:
        """Nodes of each tree that room must be had for: those of a tree that was drawn are as many
        as it might have got, lest the room decide by what was drawn."""
        sizes = self.forest.sizes
        shape = sampled_shape(self.policy)
        most = sizes if shape is None else np.where(sizes > 0, shape.num_nodes, 0)
        nodes: list[int] = most.tolist()
        return nodes

    def cut(self, room: Seq[int]) -> Drafted:
        """Each tree's first `room[i]` nodes; none of a tree that was drawn, if not all fit."""
        if self.growth is None or self.laws is None:
            return replace(self, forest=self.forest.cut(room))
        wanted, sizes = self.wanted_nodes, self.forest.sizes.tolist()
        fits = [has >= wants for has, wants in zip(room, wanted, strict=True)]
        forest = self.forest.cut(
            [size if fit else 0 for size, fit in zip(sizes, fits, strict=True)]
        )
        places = [i for i, fit in enumerate(fits) if fit]
        laws = self.laws.only(places, len(fits)).spread(places)
        return replace(self, forest=forest, growth=replace(self.growth, laws=laws))

    def observation(
        self,
        work: StepWork,
        accepted: NDArray[np.bool_],
        context: float,
        verify_ms: float,
        step_ms: float,
    ) -> StepObservation:
        """The step that verified these trees."""
        return StepObservation(
            policy=self.policy,
            batch=len(work.decodes),
            context=context,
            forest=self.forest,
            accepted=accepted,
            growth=self.growth,
            layer_rows=self.layer_rows,
            layer_ms=self.layer_ms,
            verify_ms=verify_ms,
            step_ms=step_ms,
            prefill_tokens=sum(chunk.length for chunk in work.prefills),
            plan_ms=self.plan_ms,
            propose_ms=self.propose_ms,
        )


class Drafting:
    """Asks the drafter once per step for the whole batch. Owned by the engine.

    Whatever goes wrong here costs a plain step and a warning, never a token.
    """

    def __init__(
        self, controller: SpeculationController, default_policy: str, model: TargetModel
    ) -> None:
        self._controller = controller
        self._default_policy = default_policy
        self._model = model
        self.drafter: Drafter | None = None
        self._feed: DraftFeed | None = None

    def set_controller(self, controller: SpeculationController) -> None:
        self._controller = controller

    def set_drafter(self, drafter: Drafter | None, cache: KvCache) -> bool:
        """Another drafter, or none. Returns whether features kept in the cache so far are gone."""
        self.drafter = drafter
        self._feed = None if drafter is None else DraftFeed(drafter.info, cache)
        info = None if drafter is None else drafter.info
        self._controller.set_layer_cost(info.layer_cost if info else None)
        if info is None or not info.wants_vector_per_token:
            return False
        changed = self._model.capture(info.capture_layers)
        assert info.vector_size is not None
        return cache.keep_features(info.vector_size) or changed

    def propose(self, decodes: tuple[Sequence, ...], context: float, max_nodes: int) -> Drafted:
        """Trees for `decodes`, of `max_nodes` together at most; empty where the plan says so."""
        plain = Drafted(Forest.empty(len(decodes)))
        drafter, feed = self.drafter, self._feed
        if drafter is None or feed is None or max_nodes == 0:
            return plain
        places = [i for i, sequence in enumerate(decodes) if self._can_draft(sequence, feed)]
        if not places:
            return plain
        # One call for the batch: where requests name different policies, the oldest one's holds.
        policy = self._policy(decodes[places[0]])
        places = [i for i in places if self._policy(decodes[i]) == policy]
        asking = [decodes[i] for i in places]
        catch_up_rows = sum(map(feed.num_new, asking))
        clock = time.perf_counter()
        plan = self._controller.plan(policy, len(decodes), context, catch_up_rows)
        plain = replace(plain, plan_ms=1e3 * (time.perf_counter() - clock))
        if plan is None:
            return plain
        plan = _fitted(plan, asking, max_nodes)
        if plan is None:
            return plain
        clock = time.perf_counter()
        proposal = self._ask(drafter, feed, asking, plan)
        asked = replace(plain, propose_ms=1e3 * (time.perf_counter() - clock))
        if proposal is None:
            return asked
        placed = proposal.growth.spread(len(decodes), places)
        return replace(
            asked,
            forest=placed.forest,
            policy=policy,
            growth=placed,
            layer_rows=proposal.layer_rows,
            layer_ms=proposal.layer_ms,
        )

    def forget(self, sequence: Sequence) -> None:
        """The sequence left the engine."""
        if self.drafter is None or not sequence.draft.is_open:
            return
        sequence.draft.lose()
        try:
            self.drafter.close([sequence.id])
        except DrafterUnavailable as error:
            _LOG.warning("drafter unavailable: %s", error.message)

    def _ask(
        self, drafter: Drafter, feed: DraftFeed, asking: list[Sequence], plan: GrowthPlan
    ) -> Proposal | None:
        inputs = feed.inputs(asking)
        try:
            proposal = drafter.propose(DraftBatch(inputs, plan))
        except DrafterUnavailable as error:
            _LOG.warning("drafter unavailable, decoding plainly: %s", error.message)
            for sequence in asking:
                sequence.draft.lose()
            return None
        except torch.OutOfMemoryError:
            _LOG.warning("the drafter is out of memory, decoding plainly for a while")
            for sequence in asking:
                _set_aside(sequence)
            return None
        problem = proposal.problem(len(asking), self._model.vocab_size, plan)
        if sampled_shape(plan.policy) is not None and proposal.growth.laws is None:
            problem = problem or "drawn trees without the distributions they were drawn from"
        if problem is not None:
            _LOG.warning("the drafter's answer is refused: %s", problem)
            return None
        for index in proposal.unknown:
            asking[index].draft.lose()
            if inputs[index].start == 0:
                _set_aside(asking[index])
        return proposal

    def _can_draft(self, sequence: Sequence, feed: DraftFeed) -> bool:
        left = sequence.request.sampling.max_tokens - sequence.num_generated
        return (
            left > 1  # The last token of an answer needs no tree.
            and self._policy(sequence) != "off"
            and sequence.num_computed >= sequence.draft.resume_at
            and feed.can_catch_up(sequence)
            and feed.num_new(sequence) > 0
        )

    def _policy(self, sequence: Sequence) -> str:
        return sequence.request.sampling.policy or self._default_policy


def _set_aside(sequence: Sequence) -> None:
    """The drafter was sent everything and had no room; to send all of it each step would cost more
    than drafts bring."""
    sequence.draft.lose()
    sequence.draft.resume_at = sequence.num_computed + NO_ROOM_TOKENS


def _fitted(plan: GrowthPlan, asking: list[Sequence], max_nodes: int) -> GrowthPlan | None:
    """The plan for these sequences, with `max_nodes` at most; None: there is no room for it."""
    drawn = sampled_shape(plan.policy)
    if drawn is not None and max_nodes < len(asking) * drawn.num_nodes:
        return None  # Before anything is drawn: what is may not decide.
    if max_nodes < plan.max_nodes:
        plan = msgspec.structs.replace(plan, max_nodes=max_nodes)
    if drawn is not None:
        plan = _with_draws(plan, asking)
    if plan.policy == "selector":
        plan = _with_roots(plan, asking)
    if any(sequence.request.trace for sequence in asking):
        plan = msgspec.structs.replace(plan, traced=True)
    return plan


def _with_draws(plan: GrowthPlan, asking: list[Sequence]) -> GrowthPlan:
    """The plan with each sequence's temperature, and a seed of its own for this step's draws."""
    seeds = np.asarray([sequence.seed for sequence in asking], np.int64) ^ DRAFT_STREAM
    positions = np.asarray([len(sequence.tokens) for sequence in asking], np.int64)
    uniforms = counter_uniform(seeds, positions) * 2.0**53
    return msgspec.structs.replace(
        plan,
        draw_seeds=tuple(uniforms.astype(np.int64).tolist()),
        temperatures=tuple(sequence.request.sampling.temperature for sequence in asking),
    )


def _with_roots(plan: GrowthPlan, asking: list[Sequence]) -> GrowthPlan:
    """The plan with what the selector is told of each root."""
    features = []
    for sequence in asking:
        sampling = sequence.request.sampling
        context = math.log(len(sequence.tokens))
        features.append(
            (*sequence.draft.root_features, context, sampling.temperature, sampling.top_p)
        )
    return msgspec.structs.replace(plan, root_features=tuple(features))


def note_roots(decodes: tuple[Sequence, ...], features: FloatArray) -> None:
    """Keep `root_features` [B, 5] of this step for the next ones."""
    for sequence, own in zip(decodes, features.tolist(), strict=True):
        sequence.draft.root_features = tuple(own)


def mean_context(decodes: tuple[Sequence, ...]) -> float:
    """Committed tokens per sequence, on average."""
    return sum(sequence.num_computed for sequence in decodes) / max(1, len(decodes))
