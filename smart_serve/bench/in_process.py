"""Figures of the engine in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec.structs

from smart_serve.bench.clocked import ClockedController, ClockedDrafter, ReliabilityCount
from smart_serve.bench.contestant import Contestant
from smart_serve.bench.figures import Calibrations, Costs, Load, Sample, TimeSplit
from smart_serve.bench.measured_limits import Limits
from smart_serve.bench.prepared import Work, prepared
from smart_serve.bench.workload import Question
from smart_serve.config import Ablation
from smart_serve.engine.emission import Emission
from smart_serve.engine.engine import Engine
from smart_serve.engine.sequence import Sequence as EngineSequence
from smart_serve.llm import LLM
from smart_serve.speculation.step_observation import StepObservation


class EngineBench:
    """Runs questions through one engine, in a closed loop.

    Every policy has a controller of its own, which learns from that policy's steps alone, as it
    would if nothing else were served.
    """

    def __init__(self, llm: LLM, questions: Sequence[Question], context: int = 0) -> None:
        """`context`: tokens of a prompt, at least."""
        self._engine = llm.engine
        self.limits = Limits.measured(llm.engine.model, llm.engine.drafting.drafter)
        self._drafter = None
        if llm.engine.drafting.drafter is not None:
            self._drafter = ClockedDrafter(llm.engine.drafting.drafter)
            llm.engine.set_drafter(self._drafter)
        self._controllers: dict[str, ClockedController] = {}
        self._reliability = ReliabilityCount()
        # Encoded beforehand, so that every policy pays the same for the pictures.
        self._work = prepared(llm, questions, context)

    @property
    def costs(self) -> Costs:
        drafter = self._drafter
        return Costs(self._engine.costs, drafter.info.layer_cost if drafter else None)

    def calibrations(self) -> Calibrations | None:
        """What `smart` said of its draft tokens, and what became of them."""
        return self._reliability.result()

    def run(self, name: str, load: Load, first: int) -> Sample:
        """Answer `load.requests` questions, from number `first` on; `_ClosedLoop` says what of it
        is counted."""
        contestant = Contestant.of(name)
        controller = self._take(name, contestant.ablation)
        places = [(first + i) % len(self._work) for i in range(load.requests)]
        loop = _ClosedLoop(self._engine, load.batch, self._requests(places, contestant, load))
        tally = _Tally(controller, self._drafter, self.limits)
        while loop.refill():
            tally.reset_clocks()
            clock = time.perf_counter()
            emissions = self._engine.step()
            now = time.perf_counter()
            if loop.is_steady:
                seen = self._engine.last_step
                tally.add(1e3 * (now - clock), emissions, seen)
                if name == "smart" and seen is not None:
                    self._reliability.add(seen)
            loop.take(emissions, now)
        return tally.sample(loop)

    def _take(self, name: str, ablation: Ablation | None) -> ClockedController:
        if name not in self._controllers:
            self._controllers[name] = ClockedController(
                msgspec.structs.replace(self._engine.config.speculation, ablation=ablation),
                self._engine.costs,
                self._drafter.info.layer_cost if self._drafter else None,
                self._engine.model.eos_token_ids,
            )
        controller = self._controllers[name]
        self._engine.set_controller(controller)
        return controller

    def _requests(
        self, places: Sequence[int], contestant: Contestant, load: Load
    ) -> Iterator[Work]:
        for place in places:
            request, features = self._work[place]
            sampling = msgspec.structs.replace(
                request.sampling,
                policy=contestant.policy,
                verification=contestant.verification,
                temperature=load.temperature,
            )
            yield msgspec.structs.replace(request, sampling=sampling), features


@dataclass(slots=True)
class _Live:
    """A request under way; times in seconds of the process's clock."""

    sequence: EngineSequence
    was_steady: bool
    last_s: float = field(default_factory=time.perf_counter)
    """When it came, or when its newest tokens did."""


class _ClosedLoop:
    """Keeps `batch` requests running for as long as there are questions.

    Steady is the part between two ends: after the first prompts are in, and before a place stays
    empty. Only that part is counted, for at the ends the batch is not what it is said to be.
    """

    def __init__(self, engine: Engine, batch: int, work: Iterator[Work]) -> None:
        self._engine, self._batch, self._work = engine, batch, work
        self._live: dict[int, _Live] = {}
        self._first: list[EngineSequence] = []
        self.is_steady = False
        self.first_token_ms: list[float] = []
        self.between_tokens_ms: list[float] = []

    def refill(self) -> bool:
        """Fill the free places. False: no question is left for one; what still runs is dropped."""
        while len(self._live) < self._batch:
            work = next(self._work, None)
            if work is None:
                for live in self._live.values():
                    self._engine.abort(live.sequence)
                return False
            sequence = self._engine.add(*work)
            self._live[sequence.id] = _Live(sequence, self.is_steady)
            if len(self._first) < self._batch:
                self._first.append(sequence)
        self.is_steady = self.is_steady or all(s.num_generated > 0 for s in self._first)
        return True

    def take(self, emissions: Sequence[Emission], now_s: float) -> None:
        """Note when the tokens came, and free the places of what has ended."""
        for emission in emissions:
            sequence, count = emission.sequence, len(emission.token_ids)
            live = self._live[sequence.id]
            if count and self.is_steady:
                waited_ms = 1e3 * (now_s - live.last_s)
                if sequence.num_generated > count:
                    self.between_tokens_ms += [waited_ms / count] * count
                elif live.was_steady:
                    self.first_token_ms.append(waited_ms)
            live.last_s = now_s
            if sequence.finish_reason is not None:
                del self._live[sequence.id]


class _Tally:
    """Sums over the steady steps."""

    def __init__(
        self, controller: ClockedController, drafter: ClockedDrafter | None, limits: Limits
    ) -> None:
        self._controller, self._drafter, self._limits = controller, drafter, limits
        self._tokens = self._steps = self._nodes = self._sequence_steps = 0
        self._time_ms = self._decode_ms = self._least_ms = TimeSplit()
        self._ratios: list[float] = []

    def reset_clocks(self) -> None:
        """Before a step."""
        self._controller.reset()
        if self._drafter is not None:
            self._drafter.reset()

    def add(
        self, step_ms: float, emissions: Sequence[Emission], seen: StepObservation | None
    ) -> None:
        """After a step; `seen` is None where no sequence was decoding."""
        self._tokens += sum(len(emission.token_ids) for emission in emissions)
        proposing_ms, policy_ms, draft_ms, verify_ms = 0.0, 0.0, 0.0, 0.0
        if self._drafter is not None:
            proposing_ms, policy_ms = self._drafter.spent_ms, self._drafter.policy_ms
        if seen is not None:
            self._steps += 1
            self._nodes += seen.forest.num_nodes
            self._sequence_steps += seen.batch
            draft_ms, verify_ms = sum(seen.layer_ms), seen.verify_ms
            if self._controller.predicted_ms is not None:
                self._ratios.append(self._controller.predicted_ms / seen.step_ms)
        controller_ms = self._controller.spent_ms + policy_ms
        wire_ms = max(0.0, proposing_ms - draft_ms - policy_ms)
        spent = TimeSplit(
            draft=draft_ms,
            wire=wire_ms,
            verify=verify_ms,
            controller=controller_ms,
            other=max(0.0, step_ms - draft_ms - wire_ms - verify_ms - controller_ms),
        )
        self._time_ms += spent
        if seen is not None and not seen.prefill_tokens:
            self._decode_ms += spent
            self._least_ms += self._least(seen)

    def _least(self, seen: StepObservation) -> TimeSplit:
        verify_ms = self._limits.target.least_ms(
            seen.num_tokens, seen.num_tokens, seen.batch * seen.context
        )
        drafter = self._limits.drafter
        draft_ms = sum(drafter.least_ms(rows) for rows in seen.layer_rows) if drafter else 0.0
        return TimeSplit(draft=draft_ms, verify=verify_ms)

    def sample(self, loop: _ClosedLoop) -> Sample:
        return Sample(
            tokens=self._tokens,
            elapsed_s=1e-3 * self._time_ms.total,
            steps=self._steps,
            nodes=self._nodes,
            sequence_steps=self._sequence_steps,
            time_ms=self._time_ms,
            decode_ms=self._decode_ms,
            least_ms=self._least_ms,
            predicted_over_measured=tuple(self._ratios),
            first_token_ms=tuple(loop.first_token_ms),
            between_tokens_ms=tuple(loop.between_tokens_ms),
        )
