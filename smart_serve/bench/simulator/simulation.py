"""A batch of sequences decoded under one policy, in simulated time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec
import msgspec.structs
import numpy as np

from smart_serve.bench.simulator.drafter import Skill, SyntheticDrafter
from smart_serve.bench.simulator.drafting import Drafted, draft
from smart_serve.bench.simulator.machine import Machine
from smart_serve.config import SpeculationConfig
from smart_serve.speculation.controller import SpeculationController
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.step_observation import StepObservation
from smart_serve.speculation.tree import Forest, IntArray

HOST_MS = 0.3
"""Of every step, besides the passes: scheduling, packing, sampling."""
MOST_OWED = 512
"""Tokens that a sequence keeps for a drafter that is not asked. Then it has ended, and another one
stands in its place."""


class Setting(msgspec.Struct, frozen=True):
    """Everything but the policy and the batch."""

    machine: Machine
    skill: Skill = Skill()
    context: float = 512.0
    wire_ms: float = 0.0
    """Of every step that drafts: the hop to the drafter and back."""
    overlap: bool = False
    """The drafter may be asked for one half of the batch while the other half is verified."""
    noise: float = 0.02
    """Standard deviation of the logarithm of each pass's time."""
    config: SpeculationConfig = SpeculationConfig()


@dataclass(frozen=True, slots=True)
class Step:
    """What one simulated step did; times in ms."""

    batch: int
    """Of them all, or of those whose trees it verified."""
    tokens: float
    """Expected ones, bonus tokens included."""
    nodes: int
    drafted: bool
    step_ms: float
    predicted_ms: float
    controller_ms: float
    """Processor time of the policy in this process; not part of `step_ms`."""


@dataclass(frozen=True, slots=True)
class _Ahead:
    """Trees that are drafted while others are verified."""

    sequences: IntArray
    drafted: Drafted
    asked_ms: float
    done_ms: float


class Simulation:
    """One engine's decoding; prefills are left out, for they are the same under every policy."""

    def __init__(self, policy: str, setting: Setting, batch: int, seed: int = 0) -> None:
        self._policy, self._setting = policy, setting
        self._rng = np.random.default_rng(seed)
        self._drafter = SyntheticDrafter(setting.skill, self._rng)
        machine = setting.machine
        # The configuration names the policy too, for a static tree is read from a file.
        config = msgspec.structs.replace(setting.config, policy=policy)
        self._controller = SpeculationController(config, machine.cost_table(), machine.layer_cost())
        self._owed = np.empty(0)  # [B] tokens that the drafter has not seen
        self._now_ms = 0.0
        self._ahead: _Ahead | None = None
        self.resize(batch)

    def resize(self, batch: int) -> None:
        """Sequences join, owing the drafter their prompts, or leave."""
        joined = np.full(max(0, batch - len(self._owed)), min(self._setting.context, MOST_OWED))
        self._owed = np.concatenate([self._owed, joined])[:batch]
        self._drafter.resize(batch)
        self._ahead = None

    def step(self) -> Step:
        """Plan, draft, verify, observe."""
        begun_ms, batch = self._now_ms, len(self._owed)
        ahead, self._ahead = self._ahead, None
        waiting = np.arange(batch)
        if ahead is not None:
            waiting = np.setdiff1d(waiting, ahead.sequences)
        clock = time.thread_time()
        plan = self._controller.plan(
            self._policy,
            batch,
            self._setting.context,
            int(self._owed[waiting].sum()),
            may_overlap=self._setting.overlap,
        )
        planning_ms = 1e3 * (time.thread_time() - clock)
        if ahead is not None:
            self._now_ms = max(self._now_ms, ahead.done_ms)
        trees = ahead
        if plan is not None and plan.overlaps:
            self._ahead = self._draft(plan, waiting[: -(-batch // 2)])
        elif plan is not None and ahead is None:
            trees = self._draft(plan, waiting)
            self._now_ms = trees.done_ms
        now = np.arange(batch)
        if self._ahead is not None:
            now = np.setdiff1d(now, self._ahead.sequences)
        seen = self._observation(now, trees, begun_ms, is_ahead=ahead is not None)
        predicted_ms = self._controller.prices.predicted(seen).total_ms
        self._controller.observe(seen)
        tokens = len(now) + (trees.drafted.expected_tokens if trees else 0.0)
        self._owed[now] = np.minimum(self._owed[now] + tokens / len(now), MOST_OWED)
        return Step(
            batch=len(now),
            tokens=tokens,
            nodes=seen.forest.num_nodes,
            drafted=trees is not None,
            step_ms=seen.step_ms,
            predicted_ms=predicted_ms,
            controller_ms=planning_ms + (trees.drafted.grower_ms if trees else 0.0),
        )

    def _draft(self, plan: GrowthPlan, sequences: IntArray) -> _Ahead:
        batch, owed = len(sequences), int(self._owed[sequences].sum())
        self._owed[sequences] = 0.0
        machine, context = self._setting.machine, self._setting.context
        drafted = draft(
            plan,
            self._drafter,
            sequences,
            owed,
            lambda rows, heads: self._noisy(machine.draft_layer_ms(rows, heads, batch, context)),
        )
        took_ms = sum(drafted.layer_ms) + self._noisy(self._setting.wire_ms)
        return _Ahead(sequences, drafted, self._now_ms, self._now_ms + took_ms)

    def _observation(
        self, now: IntArray, trees: _Ahead | None, begun_ms: float, *, is_ahead: bool
    ) -> StepObservation:
        """The sequences `now` are verified, with the `trees` of some or all of them."""
        setting, propose_ms = self._setting, self._now_ms - begun_ms
        growth = None
        if trees is not None:
            growth = trees.drafted.growth.spread(
                len(now), np.searchsorted(now, trees.sequences).tolist()
            )
        forest = growth.forest if growth else Forest.empty(len(now))
        turnaround_ms = self._now_ms - trees.asked_ms if trees and is_ahead else None
        verify_ms = self._noisy(
            setting.machine.verify_ms(len(now) + forest.num_nodes, len(now), setting.context)
        )
        self._now_ms += verify_ms + self._noisy(HOST_MS)
        return StepObservation(
            policy=self._policy,
            batch=len(now),
            context=setting.context,
            forest=forest,
            accepted=trees.drafted.accepted if trees else np.empty(0, np.bool_),
            growth=growth,
            layer_rows=trees.drafted.layer_rows if trees else (),
            layer_ms=trees.drafted.layer_ms if trees else (),
            verify_ms=verify_ms,
            step_ms=self._now_ms - begun_ms,
            propose_ms=propose_ms,
            left_out=len(self._owed) - len(now),
            turnaround_ms=turnaround_ms,
        )

    def _noisy(self, ms: float) -> float:
        return ms * float(np.exp(self._rng.normal(0.0, self._setting.noise)))
