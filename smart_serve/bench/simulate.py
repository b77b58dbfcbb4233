"""`smart-serve simulate`: policies over synthetic devices and drafters. It measures nothing."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import msgspec

from smart_serve.bench.simulator.device import DEVICES
from smart_serve.bench.simulator.drafter import Skill
from smart_serve.bench.simulator.machine import Machine
from smart_serve.bench.simulator.run import STANDARD, Figures, Length, simulate
from smart_serve.bench.simulator.shapes import SHAPES
from smart_serve.bench.simulator.simulation import Setting
from smart_serve.bench.simulator.trace import Phase, PhaseFigures, follow
from smart_serve.config import SpeculationConfig
from smart_serve.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--device", default="rtx-pro-6000", help=f"of {', '.join(DEVICES)}")
    parser.add_argument("--model", default="llava-1.5-7b", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--policies", default="off,eagle2,smart-paper,smart")
    parser.add_argument("--batch", default="1,4,16,64", help="batch sizes")
    parser.add_argument("--wire-ms", default="0", help="hops to the drafter, ms per step")
    quality = "mean acceptance of the drafter's best child (%(default)s)"
    parser.add_argument("--quality", type=float, default=Skill().quality, help=quality)
    worth = "factor on every acceptance; 0: a useless drafter"
    parser.add_argument("--worth", type=float, default=1.0, help=worth)
    parser.add_argument("--context", type=int, help="committed tokens of a sequence")
    parser.add_argument(
        "--trace", metavar="BATCHxSTEPS,…", help="a changing load instead: 1x60,64x60"
    )
    parser.add_argument("--steps", type=int, default=STANDARD.counted)
    parser.add_argument("--warm-up", type=int, default=STANDARD.warm_up)
    parser.add_argument("--json", type=Path, help="write the figures to this file")


def run(args: argparse.Namespace) -> int:
    """Simulate, print a table, write the JSON."""
    print("SIMULATED: step times from a roofline over public figures, a synthetic drafter")
    rows: list[Figures | PhaseFigures] = []
    for setting in _settings(args):
        for row in _trace(args, setting) if args.trace else _figures(args, setting):
            rows.append(row)
            print(_phase_line(row) if isinstance(row, PhaseFigures) else _line(row), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")
    return 0


def _settings(args: argparse.Namespace) -> Iterator[Setting]:
    for policy in args.policies.split(","):
        SpeculationConfig(policy=policy)  # Refuses unknown ones.
    for device in args.device.split(","):
        if device not in DEVICES or args.model not in SHAPES:
            raise ConfigError(f"'{device}' or '{args.model}' is not among what can be simulated")
        machine = Machine(DEVICES[device], SHAPES[args.model])
        for wire_ms in map(float, args.wire_ms.split(",")):
            yield Setting(
                machine,
                Skill(quality=args.quality, worth=args.worth),
                args.context or machine.shape.context,
                wire_ms,
                config=config_of(args.model),
            )


def _figures(args: argparse.Namespace, setting: Setting) -> Iterator[Figures]:
    for batch in map(int, args.batch.split(",")):
        for policy in args.policies.split(","):
            yield simulate(policy, setting, batch, Length(args.warm_up, args.steps))


def _trace(args: argparse.Namespace, setting: Setting) -> Iterator[PhaseFigures]:
    pairs = (phase.split("x") for phase in args.trace.split(","))
    phases = [Phase(int(batch), int(steps)) for batch, steps in pairs]
    for policy in args.policies.split(","):
        yield from follow(policy, setting, phases)


def config_of(model: str) -> SpeculationConfig:
    """Bounds of the trees; for LLaVA `eagle2` is MSD's 59 nodes in 5 layers (arXiv 2505.14260)."""
    if model.startswith("llava"):
        return SpeculationConfig(eagle2_nodes=59, eagle2_depth=5)
    return SpeculationConfig()


def _line(row: Figures) -> str:
    return (
        f"simulated {row.device} wire {row.wire_ms:g} batch {row.batch:>3}  {row.policy:<13}"
        f"{row.tokens_per_s:>8.0f} tokens/s  {row.speedup:>5.2f}x off"
        f"  {row.tokens_per_step:>5.2f} tokens/step  {row.nodes_per_step:>6.1f} nodes/step"
        f"  drafted {row.drafted_share:>4.0%}  predicted/true {row.predicted_over_true:.2f}"
        f"  controller {row.controller_ms:.1f} ms{'' if row.fits else '  (beyond its memory)'}"
    )


def _phase_line(row: PhaseFigures) -> str:
    return (
        f"simulated {row.policy:<13} batch {row.batch:>3}{row.tokens_per_s:>8.0f} tokens/s"
        f"  {row.nodes_per_step:>6.1f} nodes/step  settled after {row.settling_steps} steps"
        f"  {row.switches} switches  regret {row.regret:.0%} of a per-step oracle"
    )
