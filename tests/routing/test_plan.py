from __future__ import annotations

import pytest
from load_reports import report

from smart_serve.config import SpeculationConfig
from smart_serve.messages import LoadReport, SpeculationPlan
from smart_serve.routing.drafter_load import batch_soon
from smart_serve.routing.plan import PlanBounds, plan_for
from smart_serve.routing.report_book import ReportBook

BOUNDS = PlanBounds(SpeculationConfig(policy="smart", max_nodes=99, max_depth=5, top_k=4))


def planned(mine: LoadReport, *others: LoadReport, epoch: int = 1) -> SpeculationPlan:
    book = ReportBook()
    for one in (mine, *others):
        book.record(one, 0)
    return plan_for(mine, book, BOUNDS, epoch)


def test_a_plan_carries_the_bounds_its_epoch_and_its_time_to_live() -> None:
    plan = planned(report(), epoch=7)
    assert (plan.policy, plan.max_nodes, plan.max_depth, plan.top_k) == ("smart", 99, 5, 4)
    assert (plan.epoch, plan.ttl_ms, plan.draft_cost_factor) == (7, 1000.0, 1.0)
    assert plan.reason == "batch 4, soon 4; the drafter is its own"


def test_the_others_backlog_makes_the_shared_drafter_dearer() -> None:
    mine = report("a", drafter_id="d")
    other = report("b", drafter_id="d", draft_ms=4.0, waiting=4)
    plan = planned(mine, other)
    assert plan.draft_cost_factor == pytest.approx(1.8 / 1.4)
    assert plan.reason == "batch 4, soon 4; 1 others on its drafter, 40% of its time, soon 80%"
    # Another drafter's targets are no one's business here.
    elsewhere = report("b", drafter_id="e", draft_ms=4.0, waiting=4)
    assert planned(mine, elsewhere).draft_cost_factor == 1.0
    # My own backlog is in my own batch, which the engine prices itself.
    assert planned(other, report("a", drafter_id="d")).draft_cost_factor == 1.0


def test_a_backlog_counts_as_far_as_there_are_places() -> None:
    assert batch_soon(report(running=4, waiting=4)) == 8
    assert batch_soon(report(running=4, waiting=400, max_running=6)) == 6
    crowded = report("b", drafter_id="d", waiting=400, max_running=6)
    mine = report("a", drafter_id="d")
    assert planned(mine, crowded).draft_cost_factor == pytest.approx(1.3 / 1.2)
