"""`smart-serve bench`: policies × batch sizes, interleaved so that noise hurts all alike."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Protocol

import msgspec

from smart_serve.bench.figures import Machine, Report, Row, Sample, command_line, summarise
from smart_serve.bench.over_http import HttpBench
from smart_serve.bench.workload import Question, picture_questions

TRANSFORMERS = "transformers"
"""The name of `generate` among the policies."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--model", default="bundled", help='"bundled" or a model folder')
    parser.add_argument(
        "--drafter",
        default="bundled",
        help='"bundled", a drafter folder, "draft_model:FOLDER" or "ngram"',
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--url", help="measure a running server over HTTP instead")
    parser.add_argument("--policies", default="off,eagle2,smart,transformers")
    parser.add_argument("--batch", default="1,4,16", help="batch sizes (clients, with --url)")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--requests", type=int, default=24, help="questions per policy and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures to this file")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, write the JSON."""
    policies = args.policies.split(",")
    batches = [int(batch) for batch in args.batch.split(",")]
    if "off" not in policies:
        print("the speedups are against off: it must be among --policies", file=sys.stderr)
        return 2
    questions = picture_questions(args.requests, args.seed)
    if args.url:
        policies = [policy for policy in policies if policy != TRANSFORMERS]
    runner = _http(args, questions) if args.url else _in_process(args, questions, policies)
    rows = [row for batch in batches for row in _measure(args, runner, policies, batch)]
    report = Report(command_line(), Machine.this(args.device), tuple(rows))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return 0


class _Runner(Protocol):
    """Runs one policy once over the workload."""

    def run(self, policy: str, batch: int, temperature: float) -> Sample: ...


def _http(args: argparse.Namespace, questions: list[Question]) -> _Runner:
    return HttpBench(args.url, questions)


def _in_process(
    args: argparse.Namespace, questions: list[Question], policies: list[str]
) -> _Runner:
    # Loaded here: measuring a server over HTTP needs neither torch nor a model.
    from smart_serve.bench.in_process import EngineBench, TransformersBench
    from smart_serve.llm import LLM

    llm = LLM(args.model, args.drafter, dtype=args.dtype, device=args.device, progress=True)
    engine = EngineBench(llm, questions)
    rival = TransformersBench(llm, questions) if TRANSFORMERS in policies else None

    class InProcess:
        def run(self, policy: str, batch: int, temperature: float) -> Sample:
            if policy == TRANSFORMERS:
                assert rival is not None
                return rival.run(batch, temperature)
            return engine.run(policy, batch, temperature)

    return InProcess()


def _measure(
    args: argparse.Namespace, runner: _Runner, policies: list[str], batch: int
) -> list[Row]:
    """Rounds of all policies, one after another within a round; the first round warms up."""
    samples: dict[str, list[Sample]] = {policy: [] for policy in policies}
    for round_number in range(args.rounds + 1):
        # Another order in every round: no policy always runs after the same neighbour.
        shift = round_number % len(policies)
        for policy in policies[shift:] + policies[:shift]:
            sample = runner.run(policy, batch, args.temperature)
            if round_number > 0:
                samples[policy].append(sample)
            print(f"\rbatch {batch}: round {round_number} {policy:<14}", end="", file=sys.stderr)
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    rows = [
        summarise(policy, batch, args.temperature, samples[policy], samples["off"])
        for policy in policies
    ]
    for row in rows:
        print(_line(row), flush=True)
    return rows


def _line(row: Row) -> str:
    spread = row.speedup
    line = (
        f"batch {row.batch:>3}  {row.policy:<13}{row.tokens_per_s:>8.0f} tokens/s"
        f"  {spread.median:>5.2f}x off ({spread.p10:.2f}-{spread.p90:.2f})"
    )
    if row.tokens_per_step == 0:
        return line
    line += (
        f"  {row.tokens_per_step:>5.2f} tokens/step  {row.nodes_per_step:>5.1f} nodes/step"
        f"  draft {row.draft_share:>4.0%} verify {row.verify_share:>4.0%}"
    )
    if row.predicted_over_measured > 0:
        line += f"  predicted/measured {row.predicted_over_measured:.2f}"
    return line
