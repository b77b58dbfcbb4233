"""The engine: one step of continuous batching with tree speculation.

Knows token ids and features only: no text, no network, no Ray.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.to_device import to_device
from smart_serve.config import EngineConfig
from smart_serve.drafters.protocol import Drafter
from smart_serve.engine.admission import check_request
from smart_serve.engine.commit import CacheCommit
from smart_serve.engine.drafting import Drafted, Drafting, mean_context
from smart_serve.engine.emission import Emission, cut_at_end, finish_chunk, tally_step
from smart_serve.engine.forward import EagerForward, Forward
from smart_serve.engine.packing import image_rows, step_rows
from smart_serve.engine.row_limit import RowLimit
from smart_serve.engine.sampler import Drawn, draw
from smart_serve.engine.scheduler import Scheduler, StepWork
from smart_serve.engine.sequence import Sequence, State
from smart_serve.errors import OverloadedError
from smart_serve.messages import GenerateRequest, SpeculationPlan, TokenLogprob
from smart_serve.models.target import Hidden, TargetModel
from smart_serve.paging.blocks import BlockPool
from smart_serve.paging.kv_cache import KvCache
from smart_serve.speculation.controller import SpeculationController, StepObservation
from smart_serve.speculation.cost import CostTable

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Verified:
    """What the target said of a step's rows."""

    hidden: Hidden
    first_rows: NDArray[np.int64]  # [num_sequences + 1]
    slots: torch.Tensor  # [N] of the cache, where the rows wrote
    drawn: Drawn  # all rows of decoding sequences, then one per finished prefill
    prompt_is_finite: NDArray[np.bool_]  # of each row of the prefill chunks
    elapsed_ms: float


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
        """Of the newest step with decoding sequences."""
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
        sequence = Sequence(self._next_id, request, on_device, seed, rope)
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
        work = self.scheduler.schedule()
        if work.is_empty:
            return []
        emissions = self._run(work)
        self._row_limit.end_step()
        return [finish_chunk(emission) for emission in emissions]

    def _run(self, work: StepWork) -> list[Emission]:
        """The work's forward, or, where memory does not suffice, its halves' one after another."""
        room = self._row_limit.room(work.num_rows)
        if room < 0:
            return [emission for half in work.halves() for emission in self._run(half)]
        clock = time.perf_counter()
        context = mean_context(work.decodes)
        drafted = self._propose(work, context, room)
        verified = self._try_to_verify(work, drafted)
        if verified is None:
            return self._run_smaller(work, drafted)
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
        emission = self._fail(work.sequences[0], "the device's memory does not suffice")
        self._release(emission.sequence)
        return [emission]

    def _propose(self, work: StepWork, context: float, max_nodes: int) -> Drafted:
        drafted = self.drafting.propose(work.decodes, context, max_nodes)
        if drafted.forest.num_nodes == 0:
            return drafted
        room = [
            self.scheduler.reserve_nodes(sequence, size)
            for sequence, size in zip(work.decodes, drafted.wanted_nodes, strict=True)
        ]
        return drafted.cut(room)

    def _try_to_verify(self, work: StepWork, drafted: Drafted) -> Verified | None:
        """None: out of memory. No row is committed then, so that the same may be done again (by
        the caller, for within the `except` the traceback still holds tensors)."""
        try:
            return self._verify(work, drafted)
        except torch.OutOfMemoryError:
            return None

    def _verify(self, work: StepWork, drafted: Drafted) -> Verified:
        clock = time.perf_counter()
        num_tree_rows = len(work.decodes) + drafted.forest.num_nodes
        images = image_rows(work, num_tree_rows)
        step, hidden = self._forward.run(step_rows(work, drafted.forest), images)
        ends = [
            int(step.first_rows[len(work.decodes) + i + 1]) - 1
            for i, chunk in enumerate(work.prefills)
            if chunk.is_last
        ]
        wanted = hidden.last[:num_tree_rows]
        if ends:
            wanted = torch.cat((wanted, hidden.last[to_device(np.asarray(ends), wanted.device)]))
        # Prompt rows, at once: what is not finite must be found before others get its blocks.
        finite = torch.isfinite(hidden.last[num_tree_rows:].sum(dim=-1, dtype=torch.float32))
        drawn = self._draw(work, drafted, wanted)
        return Verified(
            hidden,
            step.first_rows,
            step.attention.slots,
            drawn,
            finite.cpu().numpy(),
            elapsed_ms=1e3 * (time.perf_counter() - clock),
        )

    def _draw(self, work: StepWork, drafted: Drafted, hidden: torch.Tensor) -> Drawn:
        """The target's token after each tree row and each finished prompt."""
        finished = [chunk.sequence for chunk in work.prefills if chunk.is_last]
        sequences = [*work.decodes, *finished]
        return draw(self.model.logits(hidden), sequences, drafted.forest, drafted.laws)

    def _commit(
        self, work: StepWork, drafted: Drafted, verified: Verified
    ) -> tuple[list[Emission], NDArray[np.bool_]]:
        """Advance every sequence; accepted nodes' keys and values move to the front."""
        emissions: list[Emission] = []
        accepted = np.zeros(drafted.forest.num_nodes, np.bool_)
        commit = CacheCommit(self.cache, verified.slots)
        for i, sequence in enumerate(work.decodes):
            first, last = int(verified.first_rows[i]), int(verified.first_rows[i + 1])
            if not verified.drawn.is_finite[first:last].all():
                emissions.append(self._fail(sequence, "the model's output is not finite"))
                continue
            path = verified.drawn.path(i)
            nodes = int(drafted.forest.offsets[i]) + path[1:] - 1
            accepted[nodes] = True
            bonus = int(verified.drawn.token_ids[first + path[-1]])
            tokens = [*drafted.forest.token_ids[nodes].tolist(), bonus]
            commit.add_rows(first, path)
            said = verified.drawn.logprobs.at(sequence, (first + path).tolist())
            emissions.append(self._advance(sequence, tokens, len(path), said))
        emissions.extend(self._commit_prefills(work, verified, commit))
        commit.apply(verified.drawn.walk, verified.first_rows, verified.hidden.features)
        for sequence in work.sequences:
            if sequence.finish_reason != "error":
                self.scheduler.commit(sequence)
            if sequence.finish_reason is not None:
                self._release(sequence)
        return emissions, accepted

    def _commit_prefills(
        self, work: StepWork, verified: Verified, commit: CacheCommit
    ) -> list[Emission]:
        emissions: list[Emission] = []
        drawn_row = num_tree_rows = int(verified.first_rows[len(work.decodes)])
        for i, chunk in enumerate(work.prefills, start=len(work.decodes)):
            sequence = chunk.sequence
            first, last = int(verified.first_rows[i]), int(verified.first_rows[i + 1])
            tokens: list[int] = []
            said: tuple[TokenLogprob, ...] = ()
            own = slice(first - num_tree_rows, last - num_tree_rows)
            is_finite = bool(verified.prompt_is_finite[own].all())
            if chunk.is_last:
                is_finite = is_finite and bool(verified.drawn.is_finite[drawn_row])
                tokens = [int(verified.drawn.token_ids[drawn_row])]
                said = verified.drawn.logprobs.at(sequence, [drawn_row])
                drawn_row += 1
            if not is_finite:
                emissions.append(self._fail(sequence, "the model's output is not finite"))
                continue
            commit.add_rows(first, np.arange(last - first))
            emission = self._advance(sequence, tokens, chunk.length, said)
            if tokens:
                emissions.append(emission)
        return emissions

    def _advance(
        self,
        sequence: Sequence,
        tokens: list[int],
        num_rows: int,
        logprobs: tuple[TokenLogprob, ...],
    ) -> Emission:
        """`num_rows` more are committed; append the tokens that follow them."""
        kept, reason = cut_at_end(sequence, tokens, self.model.eos_token_ids)
        sequence.tokens.extend(kept)
        sequence.num_computed += num_rows
        sequence.finish_reason = reason
        num_accepted = min(max(len(tokens) - 1, 0), len(kept))
        return Emission(sequence, tuple(kept), num_accepted, logprobs[: len(kept)])

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
        seen = StepObservation(
            policy=drafted.policy,
            batch=len(work.decodes),
            context=context,
            forest=drafted.forest,
            accepted=accepted,
            growth=drafted.growth,
            layer_rows=drafted.layer_rows,
            layer_ms=drafted.layer_ms,
            verify_ms=verified.elapsed_ms,
            step_ms=step_ms,
            prefill_tokens=sum(chunk.length for chunk in work.prefills),
        )
        tally_step(work, seen, drafted.elapsed_ms, self.controller)
        if work.decodes:
            self.last_step = seen
        if work.decodes and not self._row_limit.is_set:
            self.controller.observe(seen)

    def _fail(self, sequence: Sequence, why: str) -> Emission:
        _LOG.error("request %s: %s", sequence.request.request_id, why)
        sequence.finish_reason, sequence.error = "error", why
        return Emission(sequence, (), 0)

    def _release(self, sequence: Sequence) -> None:
        if sequence.finish_reason == "error":
            # Its keys and values may be NaN, and whoever gets the blocks reads them under a mask:
            # 0 · NaN would not vanish.
            self.cache.clear(self.scheduler.pool.disown(sequence.blocks))
        self.scheduler.finish(sequence)
        self.drafting.forget(sequence)
