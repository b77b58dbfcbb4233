"""The router's log lines, as text and through the formatter that Serve uses for JSON."""

from __future__ import annotations

import json
import logging

import msgspec
import pytest
from ray._common.formatters import JSONFormatter
from ray.serve._private import constants

from deploy.decision_log import MAX_REPLICAS, DecisionLog
from deploy.log_line import SERVES_OWN, log_line
from smart_serve.messages import Assignment, LoadReport, RequestShape, SpeculationPlan

LOGGER = logging.getLogger("ray.serve.test_decision_log")
PLAN = SpeculationPlan(max_nodes=64, epoch=7)


def report(replica: str = "r1", running: int = 3) -> LoadReport:
    numbers = {one.name: 0 for one in msgspec.structs.fields(LoadReport) if one.required}
    names = {"replica_id": replica, "pool": "l4", "device_type": "L4"}
    return msgspec.convert({**numbers, **names, "running": running}, LoadReport)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, LOGGER.name)
    return caplog


def as_json(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [json.loads(JSONFormatter().format(record)) for record in caplog.records]


def test_an_assignment_tells_pool_and_reason(lines: pytest.LogCaptureFixture) -> None:
    chosen = Assignment(pool="h100", reason="finishes soonest, in about 12 ms")
    DecisionLog(LOGGER).assigned(RequestShape(prompt_tokens=40, max_tokens=8), chosen)
    (line,) = as_json(lines)
    assert (line["decision"], line["pool"], line["prompt_tokens"]) == ("assign", "h100", 40)
    assert line["reason"] == chosen.reason
    assert "pool=h100 reason=finishes soonest" in str(line["message"])


def test_an_envelope_is_told_when_it_changes_and_not_before(
    lines: pytest.LogCaptureFixture,
) -> None:
    log = DecisionLog(LOGGER)
    for epoch in range(20):
        # A hundredth more work for the drafters is no news.
        factor = 1.0 + 0.001 * epoch
        plan = msgspec.structs.replace(PLAN, epoch=epoch, draft_cost_factor=factor)
        log.planned(report(running=epoch), plan)
    log.planned(report(), msgspec.structs.replace(PLAN, max_nodes=32))
    log.planned(report("r2"), PLAN)
    told = [(line["target"], line["max_nodes"]) for line in as_json(lines)]
    assert told == [("r1", 64), ("r1", 32), ("r2", 64)]
    assert as_json(lines)[0]["decision"] == "plan"


def test_replicas_that_are_gone_are_not_kept_for_ever(lines: pytest.LogCaptureFixture) -> None:
    log = DecisionLog(LOGGER)
    for number in range(MAX_REPLICAS + 1):
        log.planned(report(f"r{number}"), PLAN)
    log.planned(report("r0"), PLAN)
    assert len(lines.records) == MAX_REPLICAS + 2


def test_no_figure_has_a_name_that_serve_writes_over() -> None:
    theirs = {
        value
        for name, value in vars(constants).items()
        if name.startswith("SERVE_LOG_") and isinstance(value, str)
    }
    assert theirs & set(SERVES_OWN) == SERVES_OWN
    with pytest.raises(AssertionError):
        log_line(LOGGER, {"route": "/v1/chat/completions"})
