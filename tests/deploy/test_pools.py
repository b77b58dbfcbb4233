from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.serve
@pytest.mark.slow
def test_two_gpu_types_behind_one_endpoint_share_a_drafter() -> None:
    script = Path(__file__).with_name("two_pools.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["statuses"] == [200]
    # Greedy: the same tokens, whichever pool gave them.
    assert len(seen["texts"]) == 1
    # One over a Unix socket, the other over TCP.
    assert seen["drafter"]["connections"] == 2
    assert [target["device_type"] for target in seen["targets"]] == ["H100", "L4"]
    reports = {one["report"]["pool"]: one["report"] for one in seen["status"]["replicas"]}
    assert set(reports) == {"h100", "l4"}
    # Both worked.
    assert all(report["step_ms"] > 0 for report in reports.values())
    for blocks in seen["blocks"]:
        assert blocks["free"] + blocks["cached"] == blocks["total"]
