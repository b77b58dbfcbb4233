from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.serve
@pytest.mark.slow
def test_nodes_of_two_gpu_types_come_by_load_and_leave_without() -> None:
    script = Path(__file__).with_name("from_zero.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["at_first"] == []
    # As the control of the next line: two pools are not simply started.
    assert seen["with_one_client"] == ["H100"]
    assert seen["with_many_clients"] == ["H100", "L4"]
    assert seen["afterwards"] == []
    # Those who came when nothing was there waited; nobody was refused.
    assert seen["statuses"] == [200]
    print(seen)
