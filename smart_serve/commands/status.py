"""`smart-serve status`: the load of every target replica."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from smart_serve.client import get_json
from smart_serve.commands.server import add_server_arguments

Report = dict[str, Any]
_COLUMNS: dict[str, Callable[[Report], str]] = {
    "pool": lambda one: str(one["pool"]),
    "replica": lambda one: str(one["replica_id"]),
    "device": lambda one: str(one["device_type"]),
    "running": lambda one: str(one["running"]),
    "waiting": lambda one: str(one["waiting"]),
    "tokens/s": lambda one: f"{one['tokens_per_s']:.0f}",
    "step ms": lambda one: f"{one['step_ms']:.1f}",
    "nodes/step": lambda one: f"{one['nodes_per_step']:.1f}",
    "accepted/step": lambda one: f"{one['accepted_per_step']:.1f}",
    "KV used": lambda one: f"{1 - one['free_blocks'] / max(1, one['total_blocks']):.0%}",
}
_TEXT = {"pool", "replica", "device"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_server_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Prints a table, a row for each replica."""
    status = get_json(f"{options.url}/status")
    if options.json:
        print(json.dumps(status))
        return
    reports = sorted(
        (one["report"] for one in status["replicas"]),
        key=lambda report: (report["pool"], report["replica_id"]),
    )
    if not reports:
        print("no target has reported yet")
        return
    rows = [tuple(_COLUMNS), *(tuple(cell(one) for cell in _COLUMNS.values()) for one in reports)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(_aligned, row, widths, _COLUMNS)).rstrip())


def _aligned(cell: str, width: int, column: str) -> str:
    return cell.ljust(width) if column in _TEXT else cell.rjust(width)
