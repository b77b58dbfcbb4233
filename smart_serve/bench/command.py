"""`smart-serve bench`: policies × batch sizes × temperatures, in this process or over HTTP."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from smart_serve.bench import options
from smart_serve.bench.contestant import under_rules
from smart_serve.bench.figures import Load, Machine, Report, Row, Sample
from smart_serve.bench.models import add_model_arguments, add_widen_arguments, measured_models
from smart_serve.bench.oracle import TREES
from smart_serve.bench.over_http import HttpBench
from smart_serve.bench.report import page
from smart_serve.bench.rounds import Contest, Runner, shown
from smart_serve.bench.workload import Question, picture_questions, read_workload
from smart_serve.config import ABLATIONS, VERIFICATION_RULES, EngineConfig
from smart_serve.errors import ConfigError

TRANSFORMERS = "transformers"
"""The name of `generate` among the policies."""
ROOM = 512
"""KV tokens of a sequence beside its context: a long question, its answer and its draft tree."""
POOL = 96
"""Least picture questions to choose from: each round takes the next ones."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model_arguments(parser)
    parser.add_argument("--url", help="measure a running server over HTTP instead")
    parser.add_argument(
        "--policies", type=options.policies_and_generate, default="off,eagle2,smart,transformers"
    )
    text = "rules that verify the drawn trees of the policies, each in turn (%(default)s)"
    rules = options.words_of(VERIFICATION_RULES)
    parser.add_argument("--verification", type=rules, default="match", metavar="RULES", help=text)
    parser.add_argument(
        "--batch", type=options.batches, default="1,4,16", help="requests at a time (%(default)s)"
    )
    parser.add_argument("--temperature", type=options.temperatures, default="0")
    parser.add_argument("--rounds", type=options.count, default=5, help="(%(default)s)")
    text = "least questions of one run (%(default)s); it is three times the batch or more"
    parser.add_argument("--requests", type=options.count, default=6, help=text)
    text = 'JSON lines {"prompt": …, "images": [files], "max_tokens": …} instead of our questions'
    parser.add_argument("--workload", type=Path, metavar="FILE", help=text)
    text = "tokens of each prompt at least: the question's words over and over fill it up"
    parser.add_argument("--context", type=options.count, default=0, metavar="TOKENS", help=text)
    parser.add_argument("--seed", type=int, default=7, help="of our questions (%(default)s)")
    add_widen_arguments(parser)
    text = "also the best fixed tree in hindsight, for each batch"
    parser.add_argument("--oracle", action="store_true", help=text)
    text = f"also smart without parts of it: some of {', '.join(ABLATIONS)}"
    parser.add_argument(
        "--ablate", type=options.words_of(ABLATIONS), default=(), metavar="NAMES", help=text
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to it")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page with plots to it")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, write JSON and page."""
    if args.url and (args.ablate or args.widen or args.context):
        text = "--ablate, --widen and --context are for an engine in this process"
        raise ConfigError(text)
    with measured_models(args):
        return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    policies = [p for p in args.policies if not (args.url and p == TRANSFORMERS)]
    contest = Contest(
        policies=(
            *under_rules(policies, args.verification),
            *(f"smart-{name}" for name in args.ablate),
        ),
        trees=TREES if args.oracle else (),
        rounds=args.rounds,
        requests=args.requests,
    )
    questions = _questions(args, contest)
    runner = HttpBench(args.url, questions) if args.url else _InProcess(args, contest, questions)
    rows = [
        row
        for temperature in args.temperature
        for batch in args.batch
        for row in _hold(contest, runner, contest.load(batch, temperature))
    ]
    report = Report(
        command=" ".join(["smart-serve", *sys.argv[1:]]),
        machine=Machine.this(args.url or args.device),
        workload=_workload(args),
        rows=tuple(rows),
        calibration=runner.engine.calibrations() if isinstance(runner, _InProcess) else None,
        costs=runner.engine.costs if isinstance(runner, _InProcess) else None,
        roof=runner.engine.limits.roof if isinstance(runner, _InProcess) else None,
    )
    if args.json:
        _write(args.json, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    if args.report:
        _write(args.report, page(report, contest.policies).encode())
    return 0


class _InProcess:
    """The engine, and `generate` where it takes part."""

    def __init__(
        self, args: argparse.Namespace, contest: Contest, questions: list[Question]
    ) -> None:
        # Loaded here: measuring a server over HTTP needs neither torch nor a model.
        from smart_serve.bench.generate import GenerateBench
        from smart_serve.bench.in_process import EngineBench
        from smart_serve.llm import LLM

        llm = LLM(
            args.model,
            args.drafter,
            dtype=args.dtype,
            device=args.device,
            progress=True,
            max_running=max(64, *args.batch),
            kv_tokens=max(EngineConfig().kv_tokens, max(args.batch) * (args.context + ROOM)),
            # Rounds repeat questions: with reuse only the first would pay for its prompts.
            prefix_reuse=False,
        )
        self.engine = EngineBench(llm, questions, args.context)
        takes_part = TRANSFORMERS in contest.policies
        self._generate = GenerateBench(llm, questions, args.context) if takes_part else None

    def run(self, policy: str, load: Load, first: int) -> Sample:
        if policy == TRANSFORMERS:
            assert self._generate is not None
            return self._generate.run(load, first)
        return self.engine.run(policy, load, first)


def _questions(args: argparse.Namespace, contest: Contest) -> list[Question]:
    if args.workload:
        return read_workload(args.workload)
    most = max(contest.load(batch, 0.0).requests for batch in args.batch)
    return picture_questions(max(POOL, most), args.seed)


def _workload(args: argparse.Namespace) -> str:
    name = str(args.workload) if args.workload else f"picture questions, seed {args.seed}"
    return f"{name}, prompts of {args.context} tokens or more" if args.context else name


def _hold(contest: Contest, runner: Runner, load: Load) -> list[Row]:
    def told(what: str) -> None:
        line = f"batch {load.batch}, {load.requests} questions a run: {what}"
        print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)

    rows = contest.hold(runner, load, told)
    print("\r" + " " * 70 + "\r", end="", file=sys.stderr)
    for row in shown(rows, contest.policies):
        print(_line(row), flush=True)
    return rows


def _line(row: Row) -> str:
    spread = row.speedup
    parts = [
        f"batch {row.batch:>3}  {row.policy:<25}{row.tokens_per_s:>8.0f} tokens/s",
        f"{spread.median:>5.2f}x off ({spread.p10:.2f}-{spread.p90:.2f})",
    ]
    if row.temperature:
        parts[0] = f"T {row.temperature:g}  {parts[0]}"
    if row.tree:
        parts.append(f"with {row.tree}")
    elif row.of_oracle:
        parts.append(f"{row.of_oracle.median:>4.0%} of oracle")
    if row.tokens_per_step:
        parts.append(f"{row.tokens_per_step:.2f} tokens/step  {row.nodes_per_step:.1f} nodes/step")
    if row.time_shares:
        shares = row.time_shares
        parts.append(f"draft {shares.draft:.0%} verify {shares.verify:.0%}")
    if row.of_limit:
        parts.append(f"{row.of_limit.step:.0%} of the limit (verify {row.of_limit.verify:.0%})")
    if row.controller_ms is not None and row.time_shares:
        parts.append(f"controller {row.controller_ms:.2f} ms ({row.time_shares.controller:.1%})")
    if row.prediction:
        parts.append(
            f"predicted/measured {row.prediction.median:.2f}, "
            f"{row.prediction.within_15_percent:.0%} within 15 %"
        )
    return "  ".join(parts)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
