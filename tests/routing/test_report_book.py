from __future__ import annotations

import random

import msgspec
from load_reports import report

from smart_serve.messages import LoadReport, PrefixKey
from smart_serve.routing.cluster_view import ClusterView
from smart_serve.routing.report_book import MAX_HOLDERS, ReportBook, changes

PREFIXES = (PrefixKey(64, 2), PrefixKey(32, 1))


def test_last_report_stands_and_silence_expires() -> None:
    book = ReportBook()
    book.record(report("a", running=1), 0)
    book.record(report("a", running=2), 100)
    book.record(report("b", "slow"), 900)
    view = book.view(1000)
    assert {one.report.replica_id: (one.report.running, one.age_ms) for one in view.replicas} == {
        "a": (2, 900),
        "b": (4, 100),
    }
    assert set(book.pools(3101)) == {"slow"}
    assert book.pools(5000) == {}


def test_requests_on_their_way_count_until_a_report_must_have_seen_them() -> None:
    book = ReportBook()
    book.record(report("a"), 0)
    book.note_assigned("fast", None, 10)
    book.note_assigned("fast", "a", 30)
    assert book.pools(40)["fast"].assigned == 2
    assert book.view(40).assigned == {"fast": 2}
    assert book.pools(20 + book.on_the_way_ms)["fast"].assigned == 1
    assert book.pools(31 + book.on_the_way_ms)["fast"].assigned == 0
    assert book.view(31 + book.on_the_way_ms).assigned == {}


def test_a_pool_is_the_sum_of_its_replicas() -> None:
    book = ReportBook()
    book.record(report("a"), 0)
    book.record(report("b", step_ms=0.0, running=0), 0)
    book.record(report("c", "slow"), 0)
    fast = book.pools(0)["fast"]
    assert (fast.replicas, fast.running, fast.places, fast.tokens_per_s) == (2, 4, 128, 800.0)
    # Of those that have taken steps.
    assert fast.step_ms == 10.0


def test_running_sums_equal_a_fresh_count_after_any_history() -> None:
    rng, book, last = random.Random(7), ReportBook(), dict[str, LoadReport]()
    for step in range(3000):
        name = f"r{rng.randrange(12)}"
        one = report(
            name,
            rng.choice(["fast", "slow"]) if name not in last else last[name].pool,
            running=rng.randrange(65),
            waiting=rng.randrange(9),
            tokens_per_s=rng.uniform(0.0, 9e3),
            step_ms=rng.choice([0.0, rng.uniform(1.0, 90.0)]),
            drafter_id=rng.choice([None, "d", "e"]),
            prefixes=tuple(rng.sample(range(30), 5)),
        )
        book.record(one, step)
        last[name] = one
    view = book.view(3000.0)
    assert {one.report for one in view.replicas} == set(last.values())
    assert book.pools(3000.0) == view.pools()
    mine = report("mine", drafter_id="d")
    book.record(mine, 3000.0)
    fresh = ReportBook()
    for one in (*last.values(), mine):
        fresh.record(one, 3000.0)
    assert book.drafters.others(mine) == fresh.drafters.others(mine)
    for name in range(30):
        keys = (PrefixKey(32, name),)
        holders = {one.replica_id for one, _, _ in book.holders(keys)}
        served = {one.replica_id for one in last.values() if name in one.prefixes}
        assert holders <= served
        assert len(holders) == min(MAX_HOLDERS, len(served))


def test_changes_lead_from_one_list_to_the_other_in_whatever_order() -> None:
    rng, aligned = random.Random(5), 0
    for _ in range(2000):
        old = tuple(rng.sample(range(12), rng.randrange(8)))
        new = (*old, *rng.sample(range(12, 20), rng.randrange(3)))[rng.randrange(4) :]
        if rng.random() < 0.5:
            new = tuple(rng.sample(new, len(new)))
        gone, come = changes(old, new)
        aligned += isinstance(gone, tuple)
        taken, added = set(gone), set(come)
        assert taken <= set(old)
        assert added <= set(new)
        assert (set(old) - taken) | added == set(new)
    # Both ways of finding them were taken.
    assert 200 < aligned < 1800


def test_nothing_outgrows_the_replicas_that_report() -> None:
    book = ReportBook()
    for step in range(200):
        book.record(
            report(f"r{step}", prefixes=(step, step + 1), drafter_id=f"d{step}"), 100 * step
        )
        book.note_assigned("fast", f"r{step}", 100 * step)
    book.pools(1e9)
    state = {name: value for name, value in vars(book).items() if name != "_pools"}
    left = [value for value in state.values() if hasattr(value, "__len__")]
    assert len(left) == 5
    assert not any(left)
    assert not vars(book.drafters)["_sums"]


def test_holders_of_the_longest_prefix_come_first() -> None:
    book = ReportBook()
    book.record(report("old", prefixes=(2,)), 0)
    book.record(report("new", prefixes=(2, 1)), 1)
    book.record(report("short", prefixes=(1,)), 2)
    book.note_assigned("fast", "old", 2)
    found = [(one.replica_id, way, tokens) for one, way, tokens in book.holders(PREFIXES)]
    assert found == [("new", 0, 64), ("old", 1, 64), ("short", 0, 32)]
    book.record(report("new", prefixes=()), 3)
    assert [one.replica_id for one, _, _ in book.holders(PREFIXES)] == ["old", "short"]


def test_a_crowd_is_asked_to_speak_less_often() -> None:
    book = ReportBook()
    book.record(report("a"), 0)
    assert book.report_every_ms == 100.0
    for number in range(1000):
        book.record(report(f"r{number}"), 0)
    every_ms = book.report_every_ms
    assert every_ms > 1000.0
    # And is not forgotten for it.
    assert len(book.view(5.0 * every_ms).replicas) == 1001


def test_a_view_travels() -> None:
    book = ReportBook()
    book.record(report("a", prefixes=(2**64 - 1,)), 0)
    book.note_assigned("fast", None, 0)
    view = book.view(0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(view), type=ClusterView) == view


def test_a_cluster_is_full_when_every_queue_is() -> None:
    book = ReportBook()
    assert not book.view(0).is_full(8)
    book.record(report(waiting=9), 0)
    book.record(report("b", "slow", waiting=8), 0)
    assert book.view(0).is_full(8)
    book.record(report("b", "slow", waiting=7), 0)
    assert not book.view(0).is_full(8)
