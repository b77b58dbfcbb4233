from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from load_reports import report

from smart_serve.errors import ServerError
from smart_serve.messages import LoadReport, PrefixKey, RequestShape
from smart_serve.routing.assign import Offer, assign, finish_ms
from smart_serve.routing.pool_load import PoolLoad, load_of
from smart_serve.routing.report_book import ReportBook

SHAPE = RequestShape(prompt_tokens=100, max_tokens=50)
OFFERS = (Offer("fast"), Offer("slow"))
FAST = report("a", "fast")
SLOW = report("b", "slow", token_ms=60.0, step_ms=60.0, plain_steps=((1, 54.0), (64, 90.0)))


def loads(*reports: LoadReport, assigned: int = 0) -> dict[str, PoolLoad]:
    return {one.pool: load_of([one], assigned) for one in reports}


def full(one: LoadReport, waiting: int) -> LoadReport:
    return report(
        one.replica_id,
        one.pool,
        running=64,
        batch=64.0,
        waiting=waiting,
        free_blocks=0,
        token_ms=one.token_ms,
        plain_steps=one.plain_steps,
    )


def test_goes_where_it_finishes_soonest_and_says_why() -> None:
    chosen = assign(SHAPE, loads(FAST, SLOW), OFFERS[::-1])
    assert chosen.pool == "fast"
    assert chosen.reason == "done in about 512 ms; in slow 3041 ms, 5.7 times the cost"


def test_spills_over_to_the_slower_pool_when_the_faster_is_full() -> None:
    assert assign(SHAPE, loads(full(FAST, 2), SLOW), OFFERS).pool == "fast"
    assert assign(SHAPE, loads(full(FAST, 400), SLOW), OFFERS).pool == "slow"


def test_a_dear_pool_must_be_that_much_faster() -> None:
    seen = loads(FAST, SLOW)
    assert assign(SHAPE, seen, (Offer("fast", 5.0), Offer("slow", 1.0))).pool == "fast"
    assert assign(SHAPE, seen, (Offer("fast", 7.0), Offer("slow", 1.0))).pool == "slow"


def test_a_long_answer_weighs_speed_and_a_long_prompt_weighs_prefill() -> None:
    reader = report("b", "slow", token_ms=20.0, plain_steps=((1, 20.0),), prompt_token_ms=0.01)
    talk = RequestShape(prompt_tokens=10, max_tokens=500)
    read = RequestShape(prompt_tokens=8000, max_tokens=2)
    assert assign(talk, loads(FAST, reader), OFFERS).pool == "fast"
    assert assign(read, loads(FAST, reader), OFFERS).pool == "slow"


def test_a_request_that_finds_no_blocks_waits() -> None:
    big = RequestShape(prompt_tokens=1000, max_tokens=600)
    few = report("a", "fast", free_blocks=50)
    assert finish_ms(big, load_of([few])) > finish_ms(big, load_of([FAST]))
    assert finish_ms(SHAPE, load_of([few])) == finish_ms(SHAPE, load_of([FAST]))


def test_a_burst_between_two_reports_does_not_pile_up_on_one_pool() -> None:
    book = ReportBook()
    for name in ("one", "two"):
        book.record(report(name, name, running=0, token_ms=0.0, step_ms=0.0), 0)
    chosen = []
    for _ in range(20):
        pool = assign(SHAPE, book.pools(10), (Offer("one"), Offer("two"))).pool
        book.note_assigned(pool, None, 10)
        chosen.append(pool)
    assert 8 <= chosen.count("one") <= 12


def test_a_pool_that_nothing_is_known_of_is_tried() -> None:
    fresh = report("b", "slow", running=0, step_ms=0.0, token_ms=0.0, plain_steps=())
    assert assign(SHAPE, loads(FAST, fresh), OFFERS).pool == "slow"


def test_without_reports_the_first_pool_is_taken() -> None:
    assert assign(SHAPE, {}, OFFERS).pool == "fast"
    assert assign(SHAPE, loads(SLOW), OFFERS).pool == "slow"
    with pytest.raises(ServerError):
        assign(SHAPE, {}, ())


def test_ties_go_to_the_earlier_pool() -> None:
    seen = loads(report("a", "fast"), report("b", "slow"))
    assert assign(SHAPE, seen, OFFERS[::-1]).pool == "slow"


# --- what is cached -------------------------------------------------------------------------------


def test_a_follow_up_goes_where_its_prefix_is() -> None:
    pool = load_of([FAST, report("c", "fast")])
    chosen = assign(SHAPE, {"fast": pool}, OFFERS, [(FAST, 0, 96)])
    assert (chosen.pool, chosen.replica) == ("fast", "a")
    assert chosen.reason.startswith("the only pool that reports; 96 tokens are cached there")
    # Control: where nothing is cached, nothing is preferred.
    assert assign(SHAPE, {"fast": pool}, OFFERS).replica is None
    assert assign(SHAPE, {"fast": pool}, OFFERS, [(FAST, 0, 0)]).replica is None


def test_a_cached_prefix_is_worth_the_time_it_saves_and_no_more() -> None:
    slow_holder = [(SLOW, 0, 96)]
    assert assign(SHAPE, loads(FAST, SLOW), OFFERS, slow_holder).pool == "fast"
    long = RequestShape(prompt_tokens=40_000, max_tokens=5)
    assert assign(long, loads(FAST, SLOW), OFFERS, [(SLOW, 0, 39_000)]).replica == "b"


def test_followers_of_one_picture_do_not_overload_its_replica() -> None:
    book = ReportBook()
    for name in "abcd":
        cached = (7,) if name == "a" else ()
        book.record(report(name, running=0, max_running=8, prefixes=cached), 0)
    shape = RequestShape(prompt_tokens=600, max_tokens=200)
    sent = 0
    for _ in range(40):
        holders = [(one, way, 576) for one, way, _ in book.holders(_key(7))]
        chosen = assign(shape, book.pools(0), OFFERS, holders)
        book.note_assigned(chosen.pool, chosen.replica, 0)
        sent += chosen.replica == "a"
    assert 8 <= sent <= 20


def _key(name: int) -> tuple[PrefixKey, ...]:
    return (PrefixKey(576, name),)


# --- predictions ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    running=st.integers(0, 64),
    waiting=st.integers(0, 300),
    free=st.integers(0, 1000),
    assigned=st.integers(0, 100),
)
def test_more_load_never_finishes_sooner(
    running: int, waiting: int, free: int, assigned: int
) -> None:
    one = report(running=running, waiting=waiting, free_blocks=free)
    now = finish_ms(SHAPE, load_of([one], assigned))
    assert now >= 0
    assert now <= finish_ms(SHAPE, load_of([one], assigned + 1))
    busier = report(running=running, waiting=waiting + 1, free_blocks=free)
    assert now <= finish_ms(SHAPE, load_of([busier], assigned))


def test_a_token_costs_what_was_measured_and_grows_as_the_table_says() -> None:
    load = load_of([FAST])
    assert load.token_ms_at(4.0) == pytest.approx(10.0)
    assert load.token_ms_at(64.0) == pytest.approx(10.0 * 24.0 / 9.12)
    # Before the first step the table alone speaks, and without a table the last step.
    assert load_of([report(token_ms=0.0)]).token_ms_at(64.0) == pytest.approx(24.0)
    assert load_of([report(plain_steps=())]).token_ms_at(64.0) == 10.0
