"""The engine's side of drafting: which sequences ask, under which plan, and what comes back."""

from __future__ import annotations

import functools
import logging
import math
import time
from dataclasses import replace

import msgspec
import numpy as np
import torch

from kernels.sample import counter_uniform
from smart_serve.config import sampled_shape
from smart_serve.drafters.protocol import (
    DistantDrafter,
    DraftBatch,
    Drafter,
    DrafterUnavailable,
)
from smart_serve.engine.draft_feed import DraftFeed
from smart_serve.engine.draft_question import Answer, Question
from smart_serve.engine.drafted import Drafted
from smart_serve.engine.sequence import Sequence
from smart_serve.models.target import TargetModel
from smart_serve.paging.kv_cache import KvCache
from smart_serve.speculation.controller import SpeculationController
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import FloatArray, Forest

_LOG = logging.getLogger(__name__)
DRAFT_STREAM = 0x3C6EF372FE94F82B
"""Keeps the drafter's draws apart from the target's, which the same seed and position key. Any
constant would do."""
NO_ROOM_TOKENS = 64
"""Tokens that a sequence goes on for without drafts after the drafter had no room for it."""


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
        self._distant: DistantDrafter | None = None
        """The drafter, if it can be asked without waiting."""
        self._feed: DraftFeed | None = None
        self._ahead: Question | None = None
        """Asked in the last step, for trees of the next one."""
        self._has_failed = False
        """The drafter, in the step now under way."""

    def set_controller(self, controller: SpeculationController) -> None:
        self._controller = controller

    def set_drafter(self, drafter: Drafter | None, cache: KvCache) -> bool:
        """Another drafter, or none. Returns whether features kept in the cache so far are gone."""
        self.drafter, self._ahead = drafter, None
        self._distant = drafter if isinstance(drafter, DistantDrafter) else None
        self._feed = None if drafter is None else DraftFeed(drafter.info, cache)
        info = None if drafter is None else drafter.info
        self._controller.set_layer_cost(info.layer_cost if info else None)
        if info is None or not info.wants_vector_per_token:
            return False
        changed = self._model.capture(info.capture_layers)
        assert info.vector_size is not None
        return cache.keep_features(info.vector_size) or changed

    def propose(
        self, decodes: tuple[Sequence, ...], context: float, max_nodes: int, *, may_overlap: bool
    ) -> Drafted:
        """Trees for `decodes`, of `max_nodes` together at most; empty where the plan says so.

        Where it `may_overlap` and the plan says so, half of `decodes` are left out: they are being
        drafted for, and have their trees in the next step.
        """
        clock, self._has_failed = time.perf_counter(), False
        asked, self._ahead = self._ahead, None
        answer = None if asked is None else self._answer(asked, ahead=True)
        waiting = decodes if asked is None else _without(decodes, asked.asking)
        plan, asking, plan_ms = self._plan(waiting, decodes, context, max_nodes, may_overlap)
        if plan is not None and plan.overlaps:
            self._ahead = self._ask(asking, plan)
        elif plan is not None and asked is None:
            asked = self._ask(asking, plan)
            answer = None if asked is None else self._answer(asked)
        left_out = () if self._ahead is None else self._ahead.asking
        now = _without(decodes, left_out) if left_out else decodes
        drafted = Drafted(
            Forest.empty(len(now)), plan_ms=plan_ms, left_out=left_out, failed=self._has_failed
        )
        if plan is not None or asked is not None:
            spent_ms = 1e3 * (time.perf_counter() - clock)
            drafted = replace(drafted, propose_ms=spent_ms - plan_ms)
        return drafted if answer is None else answer.among(now, max_nodes, drafted)

    def forget(self, sequence: Sequence) -> None:
        """The sequence left the engine."""
        if self.drafter is None or not sequence.draft.is_open:
            return
        sequence.draft.lose()
        try:
            self.drafter.close([sequence.id])
        except DrafterUnavailable as error:
            _LOG.warning("drafter unavailable: %s", error.message)

    def _plan(
        self,
        waiting: tuple[Sequence, ...],
        decodes: tuple[Sequence, ...],
        context: float,
        max_nodes: int,
        may_overlap: bool,
    ) -> tuple[GrowthPlan | None, tuple[Sequence, ...], float]:
        """(how to draft, for whom of those `waiting`, what deciding it took in ms)"""
        feed = self._feed
        if feed is None or max_nodes == 0:
            return None, (), 0.0
        asking = tuple(sequence for sequence in waiting if self._can_draft(sequence, feed))
        if not asking:
            return None, (), 0.0
        # One call for the batch: where requests name different policies, the oldest one's holds.
        policy = self._policy(asking[0])
        asking = tuple(sequence for sequence in asking if self._policy(sequence) == policy)
        catch_up_rows = sum(map(feed.num_new, asking))
        # What is drawn is verified by rules to which the steps' bounds matter.
        may_overlap = may_overlap and self._distant is not None and sampled_shape(policy) is None
        clock = time.perf_counter()
        plan = self._controller.plan(
            policy, len(decodes), context, catch_up_rows, may_overlap=may_overlap
        )
        plan_ms = 1e3 * (time.perf_counter() - clock)
        if plan is not None and plan.overlaps:
            asking = asking[: -(-len(decodes) // 2)]
        return plan and _fitted(plan, asking, max_nodes), asking, plan_ms

    def _ask(self, asking: tuple[Sequence, ...], plan: GrowthPlan) -> Question | None:
        assert self.drafter is not None
        assert self._feed is not None
        inputs = self._feed.inputs(asking)
        batch = DraftBatch(inputs, plan)
        if self._distant is None or not plan.overlaps:
            return Question(plan, asking, inputs, functools.partial(self.drafter.propose, batch))
        try:
            return Question(plan, asking, inputs, self._distant.ask(batch))
        except DrafterUnavailable as error:
            self._lose(asking, error)
            return None

    def _answer(self, question: Question, *, ahead: bool = False) -> Answer | None:
        asking, plan = question.asking, question.plan
        try:
            proposal = question.wait()
        except DrafterUnavailable as error:
            self._lose(asking, error)
            return None
        except torch.OutOfMemoryError:
            _LOG.warning("the drafter is out of memory, decoding plainly for a while")
            self._has_failed = True
            for sequence in asking:
                _set_aside(sequence)
            return None
        problem = proposal.problem(len(asking), self._model.vocab_size, plan)
        if sampled_shape(plan.policy) is not None and proposal.growth.laws is None:
            problem = problem or "drawn trees without the distributions they were drawn from"
        if problem is not None:
            _LOG.warning("the drafter's answer is refused: %s", problem)
            self._has_failed = True
            return None
        for index in proposal.unknown:
            asking[index].draft.lose()
            if question.inputs[index].start == 0:
                _set_aside(asking[index])
        elapsed_ms = 1e3 * (time.perf_counter() - question.asked_s)
        return Answer(question, proposal, elapsed_ms if ahead else None)

    def _lose(self, asking: tuple[Sequence, ...], error: DrafterUnavailable) -> None:
        _LOG.warning("drafter unavailable, decoding plainly: %s", error.message)
        self._has_failed = True
        for sequence in asking:
            sequence.draft.lose()

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


def _without(decodes: tuple[Sequence, ...], others: tuple[Sequence, ...]) -> tuple[Sequence, ...]:
    left_out = frozenset(others)
    return tuple(sequence for sequence in decodes if sequence not in left_out)


def _set_aside(sequence: Sequence) -> None:
    """The drafter was sent everything and had no room; to send all of it each step would cost more
    than drafts bring."""
    sequence.draft.lose()
    sequence.draft.resume_at = sequence.num_computed + NO_ROOM_TOKENS


def _fitted(plan: GrowthPlan, asking: tuple[Sequence, ...], max_nodes: int) -> GrowthPlan | None:
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


def _with_draws(plan: GrowthPlan, asking: tuple[Sequence, ...]) -> GrowthPlan:
    """The plan with each sequence's temperature, and a seed of its own for this step's draws."""
    seeds = np.asarray([sequence.seed for sequence in asking], np.int64) ^ DRAFT_STREAM
    positions = np.asarray([len(sequence.tokens) for sequence in asking], np.int64)
    uniforms = counter_uniform(seeds, positions) * 2.0**53
    return msgspec.structs.replace(
        plan,
        draw_seeds=tuple(uniforms.astype(np.int64).tolist()),
        temperatures=tuple(sequence.request.sampling.temperature for sequence in asking),
    )


def _with_roots(plan: GrowthPlan, asking: tuple[Sequence, ...]) -> GrowthPlan:
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
