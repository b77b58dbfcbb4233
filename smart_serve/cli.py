"""Serve multimodal LLMs with tree speculative decoding: ask, look, measure, check.

A server is started with Ray Serve: `serve run deploy.app:build`, or deploy/quickstart.sh.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from smart_serve.commands import completion
from smart_serve.errors import SmartServeError

_COMMANDS = {
    "ask": ("smart_serve.commands.ask", "ask a running server about a picture, or just ask"),
    "status": ("smart_serve.commands.status", "show the load of every target replica"),
    "check": ("deploy.check", "say what a configuration would place where, and what is missing"),
    "bench": ("smart_serve.bench.command", "measure policies against each other"),
    "profile": ("smart_serve.bench.profile", "measure, keep and show what steps cost here"),
    "train-selector": ("smart_serve.selection.command", "train policy `selector` for a drafter"),
    "simulate": ("smart_serve.bench.simulate", "policies over synthetic devices and drafters"),
    "simulate-cluster": ("smart_serve.bench.simulate_cluster", "routers over fleets of mixed GPUs"),
    "completion": ("smart_serve.commands.completion", "print a completion script for a shell"),
}
"""Module with `add_arguments(parser)` and `run(options)`, and summary; loaded when it is asked for,
since some load much. The server itself is not needed here: `deploy` is named, never imported."""


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with an option in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


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
    parser = _Parser(
        prog="smart-serve",
        description=__doc__,
        epilog="smart-serve COMMAND --help tells a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command", title="commands")
    for name, (_, summary) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=_sentence(summary))
        if words and words[0] == name:
            _fill(command, name)
    return parser.parse_args(words)


def _fill(parser: argparse.ArgumentParser, name: str) -> None:
    module = importlib.import_module(_COMMANDS[name][0])
    module.add_arguments(parser)
    parser.set_defaults(run=_complete if module is completion else module.run)


def _complete(options: argparse.Namespace) -> None:
    filled = {name: _Parser(prog=name) for name in _COMMANDS}
    for name, parser in filled.items():
        _fill(parser, name)
    print(completion.script(options.shell, filled), end="")


def _sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."


if __name__ == "__main__":
    sys.exit(main())
