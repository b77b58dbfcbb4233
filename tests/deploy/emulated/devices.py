"""Replicas that take the time of a device: what they compute is real, and then they wait.

A type of GPU is a roofline over its public figures (`smart_serve.bench.simulator`), and so are the
cost tables. Waiting needs no core, so the two pools do not slow each other down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deploy.drafter import DrafterReplica
from deploy.node import accelerator_type
from deploy.target import TargetReplica
from smart_serve.bench.simulator.device import DEVICES
from smart_serve.bench.simulator.machine import LAYER_CONTEXT, Machine
from smart_serve.bench.simulator.shapes import SHAPES
from smart_serve.config import EngineConfig
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.drafters.protocol import Drafter
from smart_serve.engine.engine import Engine
from smart_serve.engine.forward import EagerForward, Forward, ImageRows, RowGroups
from smart_serve.engine.measure import cost_grid
from smart_serve.models.target import Hidden
from smart_serve.paging.rows import PackedStep, joined
from smart_serve.speculation.cost import Curve

SHAPE = SHAPES["llava-1.5-7b"]
SLOWDOWN = 12.0
"""Of all devices alike: a step of the fastest must take longer than the CPU computes for it."""


DRAFTER = Machine(DEVICES["l40s"], SHAPE)
"""Apart from both, as in `deploy/configs/mixed-gpus.yaml`."""


@dataclass(frozen=True, slots=True)
class Target(Machine):
    """One device verifies, another drafts."""

    def draft_layer_ms(self, rows: int, heads: int, batch: int, context: float) -> float:
        return DRAFTER.draft_layer_ms(rows, heads, batch, context)


def machine(accelerator: str) -> Target:
    """The emulated model on a node with this label."""
    return Target(DEVICES[accelerator.lower()], SHAPE)


class Pace:
    """Device time, and a wait until as much has passed."""

    def __init__(self) -> None:
        self.device_ms = 0.0
        """Since the start, at the device's own speed."""

    def keep(self, begun_s: float, device_ms: float) -> None:
        """Returns once work that began at `begun_s` has taken what it takes on the device."""
        self.device_ms += device_ms
        time.sleep(max(0.0, begun_s + 1e-3 * SLOWDOWN * device_ms - time.perf_counter()))


class PacedForward:
    """A target's forward at a device's pace."""

    def __init__(self, forward: Forward, device: Machine, pace: Pace) -> None:
        self._forward, self._machine, self._pace = forward, device, pace

    @property
    def stairs(self) -> tuple[int, ...]:
        return self._forward.stairs

    def prepare(self) -> None:
        self._forward.prepare()

    def run(self, groups: RowGroups, images: ImageRows) -> tuple[PackedStep, Hidden]:
        begun_s = time.perf_counter()
        done = self._forward.run(groups, images)
        rows = joined(groups)
        context, num_tokens = float(rows.num_committed.mean()), len(rows.token_ids)
        self._pace.keep(begun_s, self._machine.verify_ms(num_tokens, len(rows.blocks), context))
        return done


class EmulatedTarget(TargetReplica):
    """A target on the GPU that its node's label promises."""

    async def __init__(self, *args: Any) -> None:
        from smart_serve.engine import build

        self._pace = Pace()
        # In this process, which is this replica's alone.
        build.build_engine = self._build_engine
        await super().__init__(*args)

    def _build_engine(
        self, folder: Path, config: EngineConfig, drafter: Drafter | None, *, progress: bool
    ) -> Engine:
        from smart_serve.engine.build import load_parts

        model, cache = load_parts(folder, config)
        device = machine(accelerator_type())
        forward = PacedForward(EagerForward(model, cache), device, self._pace)
        costs = cost_grid(model, cache, forward, config.max_running).measure(
            lambda batch, rows, context: (
                SLOWDOWN * device.verify_ms(batch * rows, batch, float(context))
            ),
            lambda done, total: None,
        )
        return Engine(model, cache, config, costs, drafter, forward)

    async def device_ms(self) -> dict[str, float]:
        """Time of the device, and of the drafter for it."""
        totals = self._loop.load().totals
        return {"verify": self._pace.device_ms, "draft": totals.draft_ms / SLOWDOWN}


class EmulatedDrafter(DrafterReplica):
    """A drafter on the GPU that its node's label promises."""

    def __init__(self, *args: Any) -> None:
        from smart_serve.drafters import load

        plain: Callable[..., NetworkDrafter] = load.load_drafter
        # As above.
        load.load_drafter = lambda *found: paced(plain(*found))
        super().__init__(*args)


def paced(drafter: NetworkDrafter) -> NetworkDrafter:
    """`drafter` at its device's pace, with that device's costs."""
    network, pace = drafter._network, Pace()
    plain: Callable[[torch.Tensor, PackedStep], torch.Tensor] = network.forward

    def forward(inputs: torch.Tensor, step: PackedStep) -> torch.Tensor:
        begun_s = time.perf_counter()
        features = plain(inputs, step)
        pace.keep(begun_s, layer_ms(len(inputs)))
        return features

    network.forward = forward
    costs = DRAFTER.layer_cost()
    drafter.set_layer_cost(Curve(costs.x, tuple(SLOWDOWN * ms for ms in costs.y)))
    return drafter


def layer_ms(rows: int) -> float:
    """As `Machine.layer_cost` has it."""
    return DRAFTER.draft_layer_ms(rows, rows, rows, LAYER_CONTEXT)
