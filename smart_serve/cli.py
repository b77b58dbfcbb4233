"""The `smart-serve` command. Talks to a running server over HTTP; loads nothing heavy."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from smart_serve.client import chat_body, data_url, delta_text, get_json, stream_chat
from smart_serve.errors import SmartServeError

DEFAULT_URL = "http://127.0.0.1:8000"
_COLUMNS: tuple[str, ...] = (
    *("pool", "replica_id", "device_type", "running", "waiting", "tokens_per_s", "step_ms"),
    *("nodes_per_step", "accepted_per_step", "free_blocks", "total_blocks"),
)

_COMMANDS = {
    "bench": ("smart_serve.bench.command", "measure policies against each other"),
    "profile": ("smart_serve.bench.profile", "measure, keep and show what steps cost here"),
    "train-selector": ("smart_serve.selection.command", "train policy `selector` for a drafter"),
    "simulate": ("smart_serve.bench.simulate", "policies over synthetic devices and drafters"),
    "simulate-cluster": ("smart_serve.bench.simulate_cluster", "routers over fleets of mixed GPUs"),
}
"""Commands that live elsewhere: module with `add_arguments(parser)` and `run(options)`, summary."""


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with an option in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0, or 1 after an error that was told. An option that
    makes no sense ends the process with 2."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    run: Callable[[argparse.Namespace], int | None] = options.run
    try:
        return run(options) or 0
    except SmartServeError as error:
        print(f"smart-serve: {error.message}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output left. Nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for; `run` is the function that does it."""
    parser = _Parser(prog="smart-serve", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_ask(commands)
    _add_status(commands)
    for name, (module, summary) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if words and words[0] == name:
            # Only now: such a command may load much, and needs time for it.
            loaded = importlib.import_module(module)
            loaded.add_arguments(command)
            command.set_defaults(run=loaded.run)
    return parser.parse_args(words)


def _add_ask(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser("ask", help="ask about a picture, or just ask")
    parser.add_argument("text", help="the question")
    parser.add_argument("--image", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--url", default=DEFAULT_URL, help="of the server (%(default)s)")
    parser.add_argument("--model", help="as the server names it; not needed where it serves one")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--policy", help="speculation policy of this request")
    parser.set_defaults(run=_ask)


def _ask(options: argparse.Namespace) -> None:
    url = options.url.rstrip("/")
    model = options.model or get_json(f"{url}/v1/models")["data"][0]["id"]
    fields: dict[str, Any] = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    if options.seed is not None:
        fields["seed"] = options.seed
    if options.policy is not None:
        fields["speculation"] = {"policy": options.policy}
    usage = None
    for event in stream_chat(
        url, chat_body(model, options.text, map(data_url, options.image), **fields)
    ):
        print(delta_text(event), end="", flush=True)
        usage = event.get("usage") or usage
    print()
    if usage is not None and "speculation" in usage:
        told = usage["speculation"]
        print(
            f"[{usage['completion_tokens']} tokens in {told['target_steps']} target steps, "
            f"{told['tokens_per_step']:.2f} tokens per step]",
            file=sys.stderr,
        )


def _add_status(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser("status", help="show the load of every target replica")
    parser.add_argument("--url", default=DEFAULT_URL, help="of the server (%(default)s)")
    parser.set_defaults(run=_status)


def _status(options: argparse.Namespace) -> None:
    rows = [_COLUMNS]
    for replica in get_json(f"{options.url.rstrip('/')}/status")["replicas"]:
        report = replica["report"]
        cells = (report[name] for name in _COLUMNS)
        rows.append(tuple(f"{x:.1f}" if isinstance(x, float) else str(x) for x in cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


if __name__ == "__main__":
    sys.exit(main())
