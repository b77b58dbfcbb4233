from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smart_serve.config import SpeculationConfig
from smart_serve.errors import ServerError
from smart_serve.messages import LoadReport, RequestShape
from smart_serve.routing.assign import assign, finish_ms
from smart_serve.routing.cluster_view import ClusterView, ReplicaView, ReportBook
from smart_serve.routing.plan import PLAN_TTL_MS, PlanBounds, draft_cost_factor, plan_for

SHAPE = RequestShape(prompt_tokens=100, max_tokens=50)
BOUNDS = PlanBounds(SpeculationConfig(policy="smart", max_nodes=99, max_depth=5, top_k=4))


def report(replica: str = "a", pool: str = "fast", **changes: object) -> LoadReport:
    base = LoadReport(
        replica_id=replica,
        pool=pool,
        device_type="cpu",
        running=4,
        waiting=0,
        free_blocks=900,
        total_blocks=1000,
        tokens_per_s=400.0,
        step_ms=10.0,
        draft_ms=2.0,
        verify_ms=7.0,
        accepted_per_step=1.5,
        nodes_per_step=6.0,
        plan_epoch=0,
    )
    return msgspec.structs.replace(base, **changes)


def view_of(*reports: LoadReport, assigned: dict[str, int] | None = None) -> ClusterView:
    return ClusterView(tuple(ReplicaView(one, 0.0) for one in reports), assigned or {})


# --- view -----------------------------------------------------------------------------------------


def test_last_report_stands_and_silence_expires() -> None:
    book = ReportBook(expiry_ms=1000)
    book.record(report("a", running=1), 0)
    book.record(report("a", running=2), 100)
    book.record(report("b", "slow"), 900)
    view = book.view(1000)
    assert {one.report.replica_id: (one.report.running, one.age_ms) for one in view.replicas} == {
        "a": (2, 900),
        "b": (4, 100),
    }
    assert set(book.view(1101).pools()) == {"slow"}
    assert book.view(5000).pools() == {}


def test_a_cluster_is_full_when_every_queue_is() -> None:
    assert view_of(report(waiting=9), report("b", waiting=8)).is_full(8)
    assert not view_of(report(waiting=9), report("b", "slow", waiting=7)).is_full(8)
    assert not view_of().is_full(8)


def test_requests_on_their_way_count_until_all_replicas_reported() -> None:
    book = ReportBook()
    book.record(report("a"), 0)
    book.record(report("b"), 0)
    book.note_assigned("fast", 10)
    book.note_assigned("fast", 30)
    assert book.view(40).assigned == {"fast": 2}
    book.record(report("a"), 50)
    assert book.view(60).assigned == {"fast": 2}
    book.record(report("b"), 20)
    assert book.view(60).assigned == {"fast": 1}
    book.record(report("b"), 70)
    assert book.view(80).assigned == {}


def test_assignments_to_a_silent_pool_are_forgotten() -> None:
    book = ReportBook(expiry_ms=1000)
    for at in range(100):
        book.note_assigned("starting", at)
    assert book.view(100).assigned == {"starting": 100}
    assert book.view(2000).assigned == {}


def test_a_pool_is_the_sum_of_its_replicas() -> None:
    view = view_of(report("a"), report("b", step_ms=0.0, running=0), report("c", "slow"))
    fast = view.pools()["fast"]
    assert (fast.replicas, fast.running, fast.tokens_per_s) == (2, 4, 800.0)
    assert fast.step_ms == 10.0


def test_a_view_travels() -> None:
    view = view_of(report("a"), assigned={"fast": 3})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(view), type=ClusterView) == view


# --- assign ---------------------------------------------------------------------------------------


def test_goes_where_it_finishes_soonest() -> None:
    fast, slow = report("a", "fast", tokens_per_s=800.0), report("b", "slow", tokens_per_s=80.0)
    assert assign(SHAPE, view_of(fast, slow), ("slow", "fast")).pool == "fast"


def test_spills_over_to_the_slower_pool_when_the_faster_is_full() -> None:
    fast = report("a", "fast", tokens_per_s=800.0, waiting=100, free_blocks=0)
    slow = report("b", "slow", running=0, tokens_per_s=0.0, step_ms=30.0)
    assert assign(SHAPE, view_of(fast, slow), ("fast", "slow")).pool == "slow"


def test_a_burst_between_two_reports_does_not_pile_up_on_one_pool() -> None:
    book = ReportBook()
    for name in ("one", "two"):
        book.record(report(name, name, running=0, tokens_per_s=0.0), 0)
    chosen = []
    for _ in range(20):
        pool = assign(SHAPE, book.view(10), ("one", "two")).pool
        book.note_assigned(pool, 10)
        chosen.append(pool)
    assert 8 <= chosen.count("one") <= 12


def test_a_pool_that_never_stepped_is_tried() -> None:
    fresh = report("b", "fresh", running=0, tokens_per_s=0.0, step_ms=0.0)
    assert assign(SHAPE, view_of(report("a", "busy"), fresh), ("busy", "fresh")).pool == "fresh"


def test_without_reports_the_first_pool_is_taken() -> None:
    assert assign(SHAPE, ClusterView(), ("x", "y")).pool == "x"
    assert assign(SHAPE, view_of(report(pool="y")), ("x", "y")).pool == "y"
    with pytest.raises(ServerError):
        assign(SHAPE, ClusterView(), ())


def test_ties_go_to_the_earlier_pool() -> None:
    view = view_of(report("a", "x"), report("b", "y"))
    assert assign(SHAPE, view, ("y", "x")).pool == "y"


@given(
    running=st.integers(0, 64),
    waiting=st.integers(0, 300),
    free=st.integers(0, 1000),
    rate=st.floats(0, 1e5),
    assigned=st.integers(0, 100),
)
def test_more_load_never_finishes_sooner(
    running: int, waiting: int, free: int, rate: float, assigned: int
) -> None:
    one = report(running=running, waiting=waiting, free_blocks=free, tokens_per_s=rate)
    more = msgspec.structs.replace(one, waiting=waiting + 1)
    load = view_of(one, assigned={"fast": assigned}).pools()["fast"]
    busier = view_of(more, assigned={"fast": assigned}).pools()["fast"]
    crowded = view_of(one, assigned={"fast": assigned + 1}).pools()["fast"]
    assert 0 <= finish_ms(SHAPE, load) <= finish_ms(SHAPE, busier)
    assert finish_ms(SHAPE, load) <= finish_ms(SHAPE, crowded)


# --- plan -----------------------------------------------------------------------------------------


def test_a_plan_carries_the_bounds_its_epoch_and_its_time_to_live() -> None:
    one = report()
    plan = plan_for(one, view_of(one), BOUNDS, epoch=7)
    assert (plan.policy, plan.max_nodes, plan.max_depth, plan.top_k) == ("smart", 99, 5, 4)
    assert (plan.epoch, plan.ttl_ms, plan.draft_cost_factor) == (7, PLAN_TTL_MS, 1.0)


def test_the_others_backlog_makes_the_shared_drafter_dearer() -> None:
    mine, other = report("a"), report("b", draft_ms=4.0, waiting=4)
    view = view_of(mine, other)
    assert draft_cost_factor(mine, view, 1) == pytest.approx(1.8 / 1.4)
    assert 1.0 < draft_cost_factor(mine, view, 4) < draft_cost_factor(mine, view, 1)
    assert draft_cost_factor(mine, view, 0) == 1.0
    # My own backlog is in my own batch, which the engine prices itself.
    assert draft_cost_factor(other, view_of(report("a"), other), 1) == 1.0
