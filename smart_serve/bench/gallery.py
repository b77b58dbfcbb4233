"""`python -m smart_serve.bench.gallery FOLDER`: the plots of `deploy/docs/how-smart-decides.md`.

All of them are simulated: a roofline over the vendors' figures and a synthetic drafter. They take a
minute, and no GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from smart_serve.bench.simulate import config_of
from smart_serve.bench.simulator.device import DEVICES
from smart_serve.bench.simulator.drafter import RANK_SHARE, Skill
from smart_serve.bench.simulator.machine import Machine
from smart_serve.bench.simulator.run import Figures, Length, simulate
from smart_serve.bench.simulator.shapes import SHAPES
from smart_serve.bench.simulator.simulation import Setting
from smart_serve.bench.svg import Plot, Point, Series
from smart_serve.speculation.tree import FloatArray

MODEL = "llava-1.5-7b"
GPUS = ("h100", "l40s", "l4")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
WIRES_MS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
LENGTH = Length(warm_up=150, counted=80)
DEPTH, RANKS, MOST_NODES = 6, 4, 64
"""Layers, children of a node, and nodes of the tree whose decision is drawn."""


def main(folder: Path) -> None:
    """Writes every plot to `folder`."""
    for name, draw in PLOTS.items():
        (folder / f"{name}.svg").write_text(draw().image(), encoding="utf-8")
        print(f"{name}.svg", flush=True)


def costs() -> Plot:
    """What a target forward takes: flat while loading the weights takes longer than using them."""
    tokens = np.unique(np.geomspace(1, 2048, 60).astype(int))
    return Plot(
        f"Simulated: one forward of {MODEL}",
        "tokens in the forward (batch 1)",
        "ms",
        tuple(
            _series(gpu, tokens, [_machine(gpu).verify_ms(int(n), 1, 512.0) for n in tokens])
            for gpu in GPUS
        ),
        log_y=True,
    )


def decision() -> Plot:
    """The decision itself: expected tokens per time, by how many nodes are verified."""
    machine = _machine("h100")
    return Plot(
        f"Simulated: one step of {MODEL} on an H100, {DEPTH} layers drafted",
        "draft nodes verified for each sequence",
        "speed over plain decoding",
        tuple(
            _series(f"batch {batch}", np.arange(MOST_NODES + 1), _speeds(machine, batch))
            for batch in (1, 16, 64, 128)
        ),
        log_x=False,
        level=1.0,
    )


def tree_sizes() -> Plot:
    """The nodes that `smart` verifies, by batch size and GPU type."""
    return Plot(
        "Simulated: trees of smart by load and GPU type",
        "batch size",
        "draft nodes per sequence and step",
        tuple(
            _series(gpu, BATCHES, [_run("smart", gpu, b).nodes_per_step for b in BATCHES])
            for gpu in GPUS
        ),
        log_y=True,
    )


def speedups() -> Plot:
    """Policies against plain decoding, by batch size."""
    return Plot(
        f"Simulated: {MODEL} on an L40S",
        "batch size",
        "tokens/s over plain decoding",
        tuple(
            _series(policy, BATCHES, [_run(policy, "l40s", b).speedup for b in BATCHES])
            for policy in ("smart", "smart-paper", "eagle2", "chain:3")
        ),
        level=1.0,
    )


def wire() -> Plot:
    """What a drafter far away does to the trees."""
    return Plot(
        "Simulated: trees of smart by the way to the drafter (H100)",
        "ms to the drafter and back",
        "draft nodes per sequence and step",
        tuple(
            _series(
                f"batch {batch}",
                WIRES_MS,
                [_run("smart", "h100", batch, ms).nodes_per_step for ms in WIRES_MS],
            )
            for batch in (1, 8, 32)
        ),
        log_x=False,
    )


PLOTS: dict[str, Callable[[], Plot]] = {
    "costs": costs,
    "decision": decision,
    "tree-sizes": tree_sizes,
    "speedups": speedups,
    "wire": wire,
}


def _speeds(machine: Machine, batch: int) -> FloatArray:
    """Speed over plain decoding with the best 0, 1, 2, ... nodes of every tree. [n]"""
    context = float(SHAPES[MODEL].context)
    probs = np.sort(np.concatenate(list(_path_probs())))[::-1][:MOST_NODES]
    tokens = batch * (1.0 + np.concatenate([[0.0], np.cumsum(probs)]))
    drafting = DEPTH * machine.draft_layer_ms(batch * RANKS, batch * RANKS, batch, context)
    forward = [machine.verify_ms(batch * (1 + n), batch, context) for n in range(len(tokens))]
    plain = batch / machine.verify_ms(batch, batch, context)
    speeds: FloatArray = tokens / (drafting + np.asarray(forward)) / plain
    return speeds


def _path_probs() -> Iterator[FloatArray]:
    """Of each layer's nodes, where every node's children are accepted as `Skill` has it."""
    best = Skill().quality
    others = (1.0 - best) * RANK_SHARE * (1.0 - RANK_SHARE) ** np.arange(RANKS - 1)
    children, layer = np.concatenate([[best], others]), np.ones(1)
    for _ in range(DEPTH):
        layer = np.outer(layer, children).ravel()
        yield layer


def _run(policy: str, gpu: str, batch: int, wire_ms: float = 0.0) -> Figures:
    context = float(SHAPES[MODEL].context)
    setting = Setting(_machine(gpu), Skill(), context, wire_ms, config=config_of(MODEL))
    return simulate(policy, setting, batch, LENGTH)


def _machine(gpu: str) -> Machine:
    return Machine(DEVICES[gpu], SHAPES[MODEL])


def _series(name: str, x: Iterable[float], y: Iterable[float]) -> Series:
    return Series(name, tuple(Point(float(a), float(b)) for a, b in zip(x, y, strict=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
