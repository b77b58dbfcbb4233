"""The engine: one step of continuous batching with tree speculation.

Knows token ids and features only: no text, no network, no Ray.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence as Seq

import numpy as np
import torch
from numpy.typing import NDArray

from smart_serve.config import EngineConfig
from smart_serve.drafters.protocol import Drafter
from smart_serve.engine.admission import check_request
from smart_serve.engine.commit import StepCommit
from smart_serve.engine.drafted import Drafted
from smart_serve.engine.drafting import Drafting, mean_context, note_roots
from smart_serve.engine.emission import Emission, failed, tally_step
from smart_serve.engine.forward import EagerForward, Forward
from smart_serve.engine.row_limit import RowLimit
from smart_serve.engine.scheduler import Scheduler, StepWork
from smart_serve.engine.sequence import Sequence, State
from smart_serve.engine.totals import EngineTotals
from smart_serve.engine.verify import Verified, try_to_verify
from smart_serve.errors import OverloadedError
from smart_serve.messages import GenerateRequest, SpeculationPlan
from smart_serve.models.target import TargetModel
from smart_serve.paging.blocks import BlockPool
from smart_serve.paging.kv_cache import KvCache
from smart_serve.speculation.controller import SpeculationController
from smart_serve.speculation.cost import CostTable
from smart_serve.speculation.step_cost import StepPrice
from smart_serve.speculation.step_observation import StepObservation


class Engine:
    """Owns the sequences, the KV cache and the controller; one thread calls it."""

    def __init__(
        self,
        model: TargetModel,
        cache: KvCache,
        config: EngineConfig,
        costs: CostTable,
        drafter: Drafter | None,
        forward: Forward | None = None,
    ) -> None:
        """`forward`: how to run the model; by default one operation after another."""
        self.model = model
        self.cache = cache
        self.config = config
        self.costs = costs
        self.scheduler = Scheduler(
            BlockPool(cache.num_blocks, cache.block_tokens),
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            prefill_tokens=config.prefill_chunk_tokens,
            prefix_reuse=config.prefix_reuse,
        )
        self.controller = SpeculationController(
            config.speculation, costs, None, model.eos_token_ids
        )
        self.drafting = Drafting(self.controller, config.speculation.policy, model)
        self._forward = forward or EagerForward(model, cache)
        self._row_limit = RowLimit()
        self.last_step: StepObservation | None = None
        """What the newest step was like, if it had decoding sequences."""
        self.last_price: StepPrice | None = None
        """What it should have been like, before it was learnt from."""
        self.totals = EngineTotals()
        self._next_id = 0
        self.set_drafter(drafter)

    # ---- requests

    @property
    def max_context(self) -> int:
        """Tokens that one request may hold, prompt and answer together."""
        pool = self.scheduler.pool
        return min(self.model.max_context, pool.total * pool.block_tokens)

    def add(self, request: GenerateRequest, features: Seq[NDArray[np.float32]] = ()) -> Sequence:
        """Queue a request. Raises `ClientError` if it can never run, `OverloadedError` if there
        is no room for it now."""
        check_request(request, features, self.model, self.max_context)
        request.sampling.check_verification(
            request.sampling.policy or self.config.speculation.policy
        )
        try:
            on_device = tuple(
                torch.tensor(array, dtype=self.model.dtype, device=self.model.device)
                for array in features
            )
        except torch.OutOfMemoryError as error:
            raise OverloadedError("no memory for the request's pictures; try later") from error
        seed = request.sampling.seed
        seed = secrets.randbits(63) if seed is None else seed
        rope = self.model.rope_positions(request.image_spans)
        ends = frozenset(request.sampling.stop_token_ids)
        if not request.sampling.ignore_eos:
            ends |= self.model.eos_token_ids
        sequence = Sequence(self._next_id, request, on_device, seed, rope, ends)
        self.scheduler.add(sequence)
        self._next_id += 1
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence in any state and free its blocks; again, or after its end, harmless."""
        if sequence.state is not State.FINISHED:
            sequence.finish_reason = "cancelled"
            self._release(sequence)

    def set_drafter(self, drafter: Drafter | None) -> None:
        """Another drafter, or none; running sequences are opened with it anew."""
        features_are_gone = self.drafting.set_drafter(drafter, self.cache)
        for sequence in self.scheduler.running:
            sequence.draft.lose()
            if features_are_gone:
                sequence.draft.features_from = sequence.num_computed
        if features_are_gone:
            # A prefix without them would leave the drafter nothing to catch up from.
            self.scheduler.pool.flush()
        self._forward.prepare()

    def set_plan(self, plan: SpeculationPlan) -> None:
        """The router's envelope for the next steps."""
        self.controller.set_envelope(plan)

    def set_controller(self, controller: SpeculationController) -> None:
        """Another one, with beliefs of its own: how a benchmark compares policies in one engine."""
        self.controller = controller
        self.drafting.set_controller(controller)

    # ---- the step

    @torch.inference_mode()
    def step(self) -> list[Emission]:
        """schedule → propose → verify → commit → emit."""
        self.last_step = self.last_price = None
        work = self.scheduler.schedule()
        if work.is_empty:
            return []
        emissions = self._run(work)
        self._row_limit.end_step()
        self.totals.tokens += sum(len(emission.token_ids) for emission in emissions)
        for emission in emissions:
            emission.finish()
        return emissions

    def _run(self, work: StepWork) -> list[Emission]:
        """The work's forward, or, where memory does not suffice, its halves' one after another."""
        room = self._row_limit.room(work.num_rows)
        if room < 0:
            return [emission for half in work.halves() for emission in self._run(half)]
        clock = time.perf_counter()
        context = mean_context(work.decodes)
        work, drafted = self._propose(work, context, room)
        verified = try_to_verify(self.model, self._forward, work, drafted)
        if verified is None:
            return self._run_smaller(work, drafted)
        if verified.drawn.roots is not None:
            note_roots(work.decodes, verified.drawn.roots)
        emissions, accepted = self._commit(work, drafted, verified)
        step_ms = 1e3 * (time.perf_counter() - clock)
        self._learn(work, drafted, verified, accepted, context, step_ms)
        return emissions

    def _run_smaller(self, work: StepWork, drafted: Drafted) -> list[Emission]:
        """After a forward ran out of memory: without draft trees first, then by halves; a row that
        does not fit alone ends its sequence, and only that."""
        num_rows = work.num_rows + drafted.forest.num_nodes
        if num_rows > 1:
            half = num_rows - num_rows // 2
            self._row_limit.lower(half if num_rows == work.num_rows else max(half, work.num_rows))
            return self._run(work)  # The drafter has been sent all there is: no trees this time.
        self._row_limit.lift()
        emission = failed(work.sequences[0], "the device's memory does not suffice")
        self._release(emission.sequence)
        return [emission]

    def _propose(self, work: StepWork, context: float, max_nodes: int) -> tuple[StepWork, Drafted]:
        """(the work without those that are being drafted for meanwhile, its trees)"""
        may_overlap = self.config.speculation.overlap and not self._row_limit.is_set
        drafted = self.drafting.propose(work.decodes, context, max_nodes, may_overlap=may_overlap)
        work = work.without(drafted.left_out)
        if drafted.forest.num_nodes == 0:
            return work, drafted
        room = [
            self.scheduler.reserve_nodes(sequence, size)
            for sequence, size in zip(work.decodes, drafted.wanted_nodes, strict=True)
        ]
        return work, drafted.cut(room)

    def _commit(
        self, work: StepWork, drafted: Drafted, verified: Verified
    ) -> tuple[list[Emission], NDArray[np.bool_]]:
        """(what the step gives, which draft nodes were accepted)"""
        commit = StepCommit(work, drafted, verified, self.cache)
        emissions = commit.apply()
        for sequence in work.sequences:
            if sequence.finish_reason != "error":
                self.scheduler.commit(sequence)
            if sequence.finish_reason is not None:
                self._release(sequence)
        return emissions, commit.accepted

    def _learn(
        self,
        work: StepWork,
        drafted: Drafted,
        verified: Verified,
        accepted: NDArray[np.bool_],
        context: float,
        step_ms: float,
    ) -> None:
        """Tell the controller and the requests' tallies what the step was like."""
        seen = drafted.observation(work, accepted, context, verified.elapsed_ms, step_ms)
        clock = time.perf_counter()
        price = self.controller.prices.of_step(seen) if work.decodes else None
        tally_step(work, drafted.left_out, seen, price)
        if work.decodes:
            self.last_step, self.last_price = seen, price
        if work.decodes and not self._row_limit.is_set:
            self.controller.observe(seen)
        self.totals.add_step(seen, price, learn_ms=1e3 * (time.perf_counter() - clock))

    def _release(self, sequence: Sequence) -> None:
        if sequence.finish_reason == "error":
            # Its keys and values may be NaN, and whoever gets the blocks reads them under a mask:
            # 0 · NaN would not vanish.
            self.cache.clear(self.scheduler.pool.disown(sequence.blocks))
        self.scheduler.finish(sequence)
        self.drafting.forget(sequence)
        self.totals.add_ended(sequence)
