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
from smart_serve.speculation.tree import Forest

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
    noise: float = 0.02
    """Standard deviation of the logarithm of each pass's time."""
    config: SpeculationConfig = SpeculationConfig()


@dataclass(frozen=True, slots=True)
class Step:
    """What one simulated step did; times in ms."""

    batch: int
    tokens: float
    """Expected ones, bonus tokens included."""
    nodes: int
    drafted: bool
    step_ms: float
    predicted_ms: float
    controller_ms: float
    """Processor time of the policy in this process; not part of `step_ms`."""


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
        self.resize(batch)

    def resize(self, batch: int) -> None:
        """Sequences join, owing the drafter their prompts, or leave."""
        joined = np.full(max(0, batch - len(self._owed)), min(self._setting.context, MOST_OWED))
        self._owed = np.concatenate([self._owed, joined])[:batch]
        self._drafter.resize(batch)

    def step(self) -> Step:
        """Plan, draft, verify, observe."""
        batch = len(self._owed)
        clock = time.thread_time()
        plan = self._controller.plan(
            self._policy, batch, self._setting.context, int(self._owed.sum())
        )
        planning_ms = 1e3 * (time.thread_time() - clock)
        drafted = None if plan is None else self._draft(plan)
        seen = self._observation(drafted, batch)
        predicted_ms = self._controller.prices.predicted(seen).total_ms
        self._controller.observe(seen)
        tokens = batch + (drafted.expected_tokens if drafted else 0.0)
        self._owed = np.minimum(self._owed + tokens / batch, MOST_OWED)
        return Step(
            batch=batch,
            tokens=tokens,
            nodes=seen.forest.num_nodes,
            drafted=drafted is not None,
            step_ms=seen.step_ms,
            predicted_ms=predicted_ms,
            controller_ms=planning_ms + (drafted.grower_ms if drafted else 0.0),
        )

    def _draft(self, plan: GrowthPlan) -> Drafted:
        batch, owed = len(self._owed), int(self._owed.sum())
        self._owed = np.zeros(batch)
        machine, context = self._setting.machine, self._setting.context
        return draft(
            plan,
            self._drafter,
            batch,
            owed,
            lambda rows, heads: self._noisy(machine.draft_layer_ms(rows, heads, batch, context)),
        )

    def _observation(self, drafted: Drafted | None, batch: int) -> StepObservation:
        setting = self._setting
        forest = drafted.growth.forest if drafted else Forest.empty(batch)
        verify_ms = self._noisy(
            setting.machine.verify_ms(batch + forest.num_nodes, batch, setting.context)
        )
        layer_ms = drafted.layer_ms if drafted else ()
        wire_ms = self._noisy(setting.wire_ms) if drafted else 0.0
        return StepObservation(
            policy=self._policy,
            batch=batch,
            context=setting.context,
            forest=forest,
            accepted=drafted.accepted if drafted else np.empty(0, np.bool_),
            growth=drafted.growth if drafted else None,
            layer_rows=drafted.layer_rows if drafted else (),
            layer_ms=layer_ms,
            verify_ms=verify_ms,
            step_ms=verify_ms + sum(layer_ms) + wire_ms + self._noisy(HOST_MS),
        )

    def _noisy(self, ms: float) -> float:
        return ms * float(np.exp(self._rng.normal(0.0, self._setting.noise)))
