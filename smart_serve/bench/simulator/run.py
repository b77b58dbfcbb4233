"""Figures of policies in one simulated setting."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from smart_serve.bench.simulator.simulation import HOST_MS, Setting, Simulation, Step


class Length(msgspec.Struct, frozen=True):
    """Steps of one run."""

    warm_up: int = 300
    """The controller learns costs, calibration and whether to draft; none of it is counted."""
    counted: int = 100


STANDARD = Length()


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One policy at one batch size. All of it is simulated."""

    device: str
    model: str
    policy: str
    batch: int
    wire_ms: float
    fits: bool
    """Whether the device's memory would hold the batch."""
    tokens_per_s: float
    speedup: float
    """Over `off` with the same device, batch and context."""
    nodes_per_step: float
    """Per sequence."""
    tokens_per_step: float
    """Per sequence, the bonus token included."""
    drafted_share: float
    """Of the steps."""
    overlapped_share: float
    """Of the steps: those that verified half of the batch while the other half was drafted for."""
    predicted_over_true: float
    """Step time by the controller's corrected tables over the simulated one's."""
    controller_ms: float
    """Processor time of the policy per step in this process: the one figure that is real."""
    simulated: bool = True


def simulate(
    policy: str, setting: Setting, batch: int, length: Length = STANDARD, seed: int = 0
) -> Figures:
    """Decode under `policy` and sum up what was counted."""
    simulation = Simulation(policy, setting, batch, seed)
    for _ in range(length.warm_up):
        simulation.step()
    steps = [simulation.step() for _ in range(length.counted)]
    machine, rate = setting.machine, tokens_per_s(steps)
    plain = batch / plain_step_s(setting, batch)
    return Figures(
        device=machine.device.name,
        model=machine.shape.name,
        policy=policy,
        batch=batch,
        wire_ms=setting.wire_ms,
        fits=machine.holds(batch, setting.context),
        tokens_per_s=rate,
        speedup=rate / plain,
        nodes_per_step=sum(step.nodes for step in steps) / sum(step.batch for step in steps),
        tokens_per_step=sum(step.tokens for step in steps) / sum(step.batch for step in steps),
        overlapped_share=sum(step.batch < batch for step in steps) / len(steps),
        drafted_share=sum(step.drafted for step in steps) / len(steps),
        predicted_over_true=sum(s.predicted_ms for s in steps) / sum(s.step_ms for s in steps),
        controller_ms=sum(step.controller_ms for step in steps) / len(steps),
    )


def tokens_per_s(steps: Sequence[Step]) -> float:
    """Throughput of the whole batch."""
    return 1e3 * sum(step.tokens for step in steps) / sum(step.step_ms for step in steps)


def plain_step_s(setting: Setting, batch: int) -> float:
    """Seconds of a step of plain decoding, without noise."""
    return 1e-3 * (setting.machine.verify_ms(batch, batch, setting.context) + HOST_MS)
