"""A load that comes and goes: how fast a policy follows, and what it misses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from smart_serve.bench.simulator.oracle import Oracle
from smart_serve.bench.simulator.run import tokens_per_s
from smart_serve.bench.simulator.simulation import Setting, Simulation, Step

WINDOW = 5
"""Steps over which a rate is taken: single trees differ too much."""
SETTLED = 0.9
"""Of the rate of the phase's second half."""
SHORTEST_PHASE = 2 * WINDOW
"""Steps: half of them must hold a window."""
ORACLE_EVERY = 10
"""Steps between two that the oracle is asked about; it is slow."""


class Phase(msgspec.Struct, frozen=True):
    """A number of steps at one batch size."""

    batch: int
    steps: int


class PhaseFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How one phase went. All of it is simulated."""

    policy: str
    batch: int
    tokens_per_s: float
    nodes_per_step: float
    """Per sequence."""
    settling_steps: int
    """Until the rate reached that of the phase's second half; the newcomers' prompts, which the
    drafter must read, are among them."""
    switches: int
    """Between drafting and plain decoding, after settling."""
    regret: float
    """1 − rate over that of a per-step oracle, which sees the future, in the second half."""
    simulated: bool = True


def follow(policy: str, setting: Setting, phases: Sequence[Phase]) -> list[PhaseFigures]:
    """Run through `phases`, one after the other, with one controller."""
    simulation = Simulation(policy, setting, phases[0].batch)
    oracle = Oracle(setting)
    figures = []
    for phase in phases:
        simulation.resize(phase.batch)
        steps = [simulation.step() for _ in range(phase.steps)]
        figures.append(_figures(policy, phase, steps, oracle))
    return figures


def _figures(policy: str, phase: Phase, steps: Sequence[Step], oracle: Oracle) -> PhaseFigures:
    late = steps[len(steps) // 2 :]
    best = [oracle.tokens_per_ms(phase.batch) for _ in range(0, phase.steps, ORACLE_EVERY)]
    settling = _settling_steps(steps, tokens_per_s(late))
    modes = [step.drafted for step in steps[settling:]]
    return PhaseFigures(
        policy=policy,
        batch=phase.batch,
        tokens_per_s=tokens_per_s(late),
        nodes_per_step=sum(step.nodes for step in late) / (phase.batch * len(late)),
        settling_steps=settling,
        switches=sum(a is not b for a, b in itertools.pairwise(modes)),
        regret=1.0 - tokens_per_s(late) / (1e3 * sum(best) / len(best)),
    )


def _settling_steps(steps: Sequence[Step], settled_rate: float) -> int:
    for first in range(len(steps) - WINDOW):
        if tokens_per_s(steps[first : first + WINDOW]) >= SETTLED * settled_rate:
            return first
    return len(steps)
