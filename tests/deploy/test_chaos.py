"""Short runs of `tests/run.sh --chaos`, and one that must fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.serve, pytest.mark.slow]


def chaos(report: Path, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.deploy.chaos", "--report", str(report), *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert report.exists(), run.stderr[-3000:]
    return run.returncode, json.loads(report.read_text())


def test_nothing_is_lost_while_parts_of_the_cluster_die(tmp_path: Path) -> None:
    status, seen = chaos(tmp_path / "report", "--minutes", "2")
    assert status == 0, seen
    assert seen["whole"] == seen["requests"] > 0
    assert len(seen["kills"]) == 7


def test_an_update_under_load_cuts_no_stream(tmp_path: Path) -> None:
    status, seen = chaos(tmp_path / "report", "--minutes", "1", "--kinds", "update")
    assert status == 0, seen
    assert seen["kills"]["update"] >= 1
    # Not even one that its client could have gone on with.
    assert seen["connections_cut"] == 0


def test_control_without_resumption_answers_are_lost(tmp_path: Path) -> None:
    # Long enough for several: one may hit a replica that has no stream.
    options = ("--minutes", "1.5", "--kinds", "target", "--resumptions", "0")
    status, seen = chaos(tmp_path / "report", *options)
    assert status == 1
    assert seen["lost"] > 0
