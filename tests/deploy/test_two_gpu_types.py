"""What `tests.deploy.emulated.two_types` sees: trees, places, throughput in time of the devices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.serve, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
ORDER = ("smart l4 1", "smart h100 1", "smart l4 8", "smart h100 8")
"""By the trees of a sequence, the largest first: drafting is cheap beside a slow device's step,
and what a step bears for nothing is shared by a full batch."""
LATER = 1.25
"""As much later as elsewhere a request may end for what the others gain by it."""


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    words = [sys.executable, "-m", "tests.deploy.emulated.two_types"]
    run = subprocess.run(words, capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    print({name: value for name, value in found.items() if name != "decisions"})
    return found


def by_size(trees: dict[str, float]) -> tuple[str, ...]:
    return tuple(sorted(ORDER, key=lambda name: -trees[name]))


def test_trees_differ_by_gpu_type_and_by_load_as_planned(seen: dict[str, Any]) -> None:
    assert by_size(seen["predicted_trees"]) == ORDER
    assert by_size(seen["trees"]) == ORDER
    for name in ORDER:
        assert 0.4 < seen["trees"][name] / seen["predicted_trees"][name] < 2.5, name


def test_trees_of_a_fixed_size_do_not(seen: dict[str, Any]) -> None:
    h100, l4 = seen["trees"]["chain:4 h100 8"], seen["trees"]["chain:4 l4 1"]
    assert h100 == pytest.approx(l4, rel=0.1)
    assert h100 <= 4.0


def test_requests_go_where_they_end_soonest(seen: dict[str, Any]) -> None:
    assert seen["few"]["sequences"] == {"h100": 6, "l4": 0}
    few, many = seen["decisions"][:6], seen["decisions"][6:]
    assert all(one["here_ms"] < one["there_ms"] for one in few)
    assert all(one["here_ms"] <= LATER * one["there_ms"] for one in many)
    # When the faster one is full, the slower one gets the rest.
    assert 0 < seen["routed"]["sequences"]["l4"] < seen["routed"]["sequences"]["h100"]
    # Had they gone to the other pool each, that would have been seen.
    assert not all(one["there_ms"] <= LATER * one["here_ms"] for one in many)


def test_more_is_done_in_the_devices_time_than_by_turns(seen: dict[str, Any]) -> None:
    by_turns, routed = seen["by_turns"], seen["routed"]
    assert by_turns["sequences"]["h100"] == by_turns["sequences"]["l4"]
    # The same answers.
    assert by_turns["tokens"] == routed["tokens"]
    assert routed["tokens_per_device_s"] > by_turns["tokens_per_device_s"]
