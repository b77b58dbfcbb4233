"""`smart-serve simulate`: policies over synthetic devices and drafters. It measures nothing."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import msgspec

from smart_serve.bench import options
from smart_serve.bench.simulator.device import DEVICES
from smart_serve.bench.simulator.drafter import Skill
from smart_serve.bench.simulator.machine import Machine
from smart_serve.bench.simulator.run import STANDARD, Figures, Length, simulate
from smart_serve.bench.simulator.shapes import SHAPES
from smart_serve.bench.simulator.simulation import Setting
from smart_serve.bench.simulator.summary import Summary, best_tree, summary
from smart_serve.bench.simulator.trace import SHORTEST_PHASE, Phase, PhaseFigures, follow
from smart_serve.config import SpeculationConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--device",
        type=options.words_of(DEVICES),
        default="rtx-pro-6000",
        help=f"of {', '.join(DEVICES)}",
    )
    parser.add_argument("--model", choices=tuple(SHAPES), default="llava-1.5-7b")
    parser.add_argument("--policies", type=options.policies, default="off,eagle2,smart-paper,smart")
    parser.add_argument("--batch", type=options.batches, default="1,4,16,64", help="batch sizes")
    text = "hops to the drafter, ms per step"
    parser.add_argument("--wire-ms", type=options.numbers, default="0", help=text)
    parser.add_argument(
        "--no-overlap",
        action="store_true",
        help="never draft for one half of the batch while the other half is verified",
    )
    quality = "mean acceptance of the drafter's best child (%(default)s)"
    parser.add_argument("--quality", type=options.share, default=Skill().quality, help=quality)
    worth = "factor on every acceptance; 0: a useless drafter"
    parser.add_argument("--worth", type=options.share, default=1.0, help=worth)
    parser.add_argument("--context", type=options.count, help="committed tokens of a sequence")
    parser.add_argument(
        "--trace", type=_phases, metavar="BATCHxSTEPS,…", help="a changing load instead: 1x60,64x60"
    )
    text = "also smart as a share of the best fixed tree of each batch, and of the other policies"
    parser.add_argument("--oracle", action="store_true", help=text)
    parser.add_argument("--steps", type=options.count, default=STANDARD.counted)
    parser.add_argument("--warm-up", type=options.count, default=STANDARD.warm_up)
    parser.add_argument("--json", type=Path, help="write the figures to this file")


def run(args: argparse.Namespace) -> int:
    """Simulate, print a table, write the JSON."""
    print("SIMULATED: step times from a roofline over public figures, a synthetic drafter")
    rows: list[Figures | PhaseFigures | Summary] = []
    for setting in _settings(args):
        if args.trace:
            for phase in _trace(args, setting):
                rows.append(phase)
                print(_phase_line(phase), flush=True)
            continue
        figures = []
        for row in _figures(args, setting):
            figures.append(row)
            print(_line(row), flush=True)
        rows.extend(figures)
        if args.oracle:
            of_all = summary(figures, [best_tree(setting, batch) for batch in args.batch])
            rows.append(of_all)
            print(_summary_line(of_all), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")
    return 0


def _settings(args: argparse.Namespace) -> Iterator[Setting]:
    for device in args.device:
        machine = Machine(DEVICES[device], SHAPES[args.model])
        for wire_ms in args.wire_ms:
            yield Setting(
                machine,
                Skill(quality=args.quality, worth=args.worth),
                args.context or machine.shape.context,
                wire_ms,
                # A drafter without a wire is in the target's own process.
                overlap=wire_ms > 0 and not args.no_overlap,
                config=config_of(args.model),
            )


def _figures(args: argparse.Namespace, setting: Setting) -> Iterator[Figures]:
    for batch in args.batch:
        for policy in args.policies:
            yield simulate(policy, setting, batch, Length(args.warm_up, args.steps))


def _trace(args: argparse.Namespace, setting: Setting) -> Iterator[PhaseFigures]:
    for policy in args.policies:
        yield from follow(policy, setting, args.trace)


def _phases(text: str) -> tuple[Phase, ...]:
    """`1x60,64x60`."""
    phases = []
    for word in text.split(","):
        batch, _, steps = word.partition("x")
        phases.append(Phase(options.batch(batch), options.count(steps)))
        if phases[-1].steps < SHORTEST_PHASE:
            raise argparse.ArgumentTypeError(f"'{word}' has fewer than {SHORTEST_PHASE} steps")
    return tuple(phases)


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
        f"  drafted {row.drafted_share:>4.0%}  overlapped {row.overlapped_share:>4.0%}"
        f"  predicted/true {row.predicted_over_true:.2f}"
        f"  controller {row.controller_ms:.1f} ms{'' if row.fits else '  (beyond its memory)'}"
    )


def _summary_line(row: Summary) -> str:
    rivals = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in row.over_rivals.items())
    return (
        f"simulated {row.device} wire {row.wire_ms:g} smart over all batches: {rivals}, "
        f"{row.share_of_oracle:.2f} of the oracle; at least {row.least_speedup:.3f}x off, "
        f"{row.least_share:.2f} of the oracle"
    )


def _phase_line(row: PhaseFigures) -> str:
    return (
        f"simulated {row.policy:<13} batch {row.batch:>3}{row.tokens_per_s:>8.0f} tokens/s"
        f"  {row.nodes_per_step:>6.1f} nodes/step  settled after {row.settling_steps} steps"
        f"  {row.switches} switches  regret {row.regret:.0%} of a per-step oracle"
    )
