"""The host's part of a step is measured over steps that are whole but for the layers."""

from __future__ import annotations

import pytest

from smart_serve.bench import host_time
from smart_serve.engine.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return host_time.still_engine(max_running=4, device="cpu")


@pytest.mark.parametrize(
    ("policy", "nodes", "accepted"), [("off", 0, 0), ("chain:3", 12, 12), ("eagle2:20x4", 80, 16)]
)
def test_steps_draft_and_accept(engine: Engine, policy: str, nodes: int, accepted: int) -> None:
    found = host_time.run_steps(engine, policy, batch=4, num_steps=3)
    assert len(found.steps_ms) == 3
    assert (found.nodes, found.accepted) == (nodes, accepted)
    engine.scheduler.pool.check_idle()


def test_a_line_for_each_policy_and_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert host_time.main(["--policies", "off,chain:2", "--batch", "1,2", "--steps", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split() for line in lines[1:3]] == [
        ["off", "batch", "1"],
        ["off", "batch", "2"],
    ]
    assert "4 nodes, 4 accepted" in lines[4]
