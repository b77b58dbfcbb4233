"""`smart-serve train-selector`: which delayed tree to draw at which root, for a target, its drafter
and this device."""

from __future__ import annotations

import argparse
from pathlib import Path

from smart_serve.bench import options
from smart_serve.bench.models import add_model_arguments
from smart_serve.bench.prepared import Work, prepared
from smart_serve.bench.workload import Question, picture_questions, read_workload
from smart_serve.config import VERIFICATION_RULES
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.errors import ConfigError
from smart_serve.llm import LLM
from smart_serve.models.folders import resolve_drafter
from smart_serve.progress import show_progress
from smart_serve.selection.roots import Roots, collect
from smart_serve.selection.train import Verdict, train
from smart_serve.speculation.selector import FILE_NAME

QUESTIONS = 400
"""Of ours; asked again and again, with other seeds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model_arguments(parser)
    text = "roots to learn from, one tree each (%(default)s)"
    parser.add_argument("--roots", type=options.count, default=40_000, help=text)
    text = "requests at a time while they are gathered (%(default)s)"
    parser.add_argument("--batch", type=options.batch, default=16, help=text)
    text = 'JSON lines {"prompt": …, "images": [files], "max_tokens": …} instead of our questions'
    parser.add_argument("--workload", type=Path, metavar="FILE", help=text)
    text = "rule that verifies (%(default)s)"
    parser.add_argument(
        "--verification", default="traversal", choices=VERIFICATION_RULES, help=text
    )
    parser.add_argument("--seed", type=int, default=0)
    text = f"where to (%(default)s: {FILE_NAME} in the drafter's folder, where it is looked for)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)


def run(args: argparse.Namespace) -> int:
    """Gather, train, write, tell."""
    llm = LLM(
        args.model, args.drafter, dtype=args.dtype, device=args.device, progress=True,
        max_running=args.batch,
    )  # fmt: skip
    drafter = llm.engine.drafting.drafter
    if not isinstance(drafter, NetworkDrafter):
        raise ConfigError(f"drafter '{args.drafter}' has no folder that a selector could lie in")
    out = args.out or resolve_drafter(args.drafter) / FILE_NAME
    work = prepared(llm, read_workload(args.workload) if args.workload else _questions(args.seed))
    roots = _collect(args, llm, drafter, work)
    selector, verdict = train(
        roots, llm.engine.costs, drafter.info.layer_cost, seed=args.seed, told=show_progress
    )
    selector.write(out)
    print(_told(verdict, len(roots.accepted)))
    print(f"written to {out}")
    return 0


def _collect(
    args: argparse.Namespace, llm: LLM, drafter: NetworkDrafter, work: list[Work]
) -> Roots:
    def told(done: int, total: int) -> None:
        show_progress("gathering roots", done, total)

    return collect(
        llm.engine, drafter, work, args.verification,
        count=args.roots, batch=args.batch, seed=args.seed, told=told,
    )  # fmt: skip


def _questions(seed: int) -> list[Question]:
    # Other pictures than the benchmark's, whose seed is 7.
    return picture_questions(QUESTIONS, seed + 1_000)


def _told(verdict: Verdict, count: int) -> str:
    lines = [
        f"{count} roots; values explain {verdict.explained:.0%} of what held-out trees brought",
        "predicted on held-out roots, tokens/s over the best static tree:",
    ]
    for batch, gain in verdict.gains.items():
        shape = ",".join(map(str, verdict.statics[batch]))
        lines.append(f"  batch {batch:>2}: {gain:.3f} of delayed:{shape}")
    return "\n".join(lines)
