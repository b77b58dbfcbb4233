from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_serve.routing.autoscale import (
    AIM,
    BUCKETS,
    FULL,
    Autoscaler,
    PartDemand,
    PeakWindow,
    PoolDemand,
)

FAST = PoolDemand(
    name="fast",
    replicas=0,
    min_replicas=0,
    max_replicas=8,
    price_per_hour=3.0,
    full_rate=5000.0,
    used_rate=0.0,
    waiting=0.0,
    places=64.0,
)
SLOW = msgspec.structs.replace(FAST, name="slow", price_per_hour=1.0, full_rate=1200.0, places=32.0)
TICK_S, KEEP_S = 5.0, 300.0


class World:
    """Pools that serve a load, and are given what was decided at once."""

    def __init__(self, *pools: PoolDemand, scaler: Autoscaler | None = None) -> None:
        self.pools = {pool.name: pool for pool in pools}
        self.scaler = scaler or Autoscaler(KEEP_S)
        self.now_s = 0.0
        self.history: list[int] = []

    def tick(self, load: float) -> dict[str, int]:
        """Tokens per second that are asked for, shared as the pools can, the rest in a queue."""
        rate = sum(pool.replicas * pool.full_rate for pool in self.pools.values())
        used = min(1.0, load / rate) if rate else 0.0
        left = max(0.0, load - rate)
        seen = []
        for place, pool in enumerate(self.pools.values()):
            waiting = pool.places * left / pool.full_rate if place == 0 else 0.0
            served = pool.replicas * pool.full_rate * used
            seen.append(msgspec.structs.replace(pool, used_rate=served, waiting=waiting))
        decided = self.scaler.decide(seen, (), self.now_s)
        self.pools = {
            name: msgspec.structs.replace(pool, replicas=decided[name].replicas)
            for name, pool in self.pools.items()
        }
        self.now_s += TICK_S
        counts = {name: pool.replicas for name, pool in self.pools.items()}
        self.history.append(sum(counts.values()))
        return counts

    def run(self, loads: Iterator[float] | list[float]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for load in loads:
            counts = self.tick(load)
        return counts


def turns(history: list[int]) -> int:
    """How often growing became shrinking, or the reverse."""
    moves = [b - a for a, b in itertools.pairwise(history) if a != b]
    return sum((a > 0) != (b > 0) for a, b in itertools.pairwise(moves))


def square(low: float, high: float, half_s: float, periods: int) -> list[float]:
    half = int(half_s / TICK_S)
    return ([high] * half + [low] * half) * periods


def test_grows_where_a_token_is_cheapest_and_shrinks_where_it_is_dearest() -> None:
    world = World(FAST, SLOW)
    assert world.run([7000.0] * 3) == {"fast": 2, "slow": 0}
    # 0.60 per thousand tokens/s there, 0.83 here: only when the cheap pool may grow no more.
    world = World(msgspec.structs.replace(FAST, max_replicas=1), SLOW)
    grown = world.run([7000.0] * 3)
    assert grown == {"fast": 1, "slow": 5}
    shrunk = world.run([2500.0] * 120)
    assert shrunk == {"fast": 1, "slow": 0}


def test_trees_shrink_first() -> None:
    # A batch that is nearly full of sequences, each with a large tree, is not a reason to pay:
    # the load is what plain decoding of these sequences takes.
    one = msgspec.structs.replace(SLOW, replicas=1, used_rate=0.75 * SLOW.full_rate)
    assert Autoscaler().decide([one], (), 0.0)["slow"].replicas == 1
    crowded = msgspec.structs.replace(one, used_rate=0.85 * SLOW.full_rate)
    assert Autoscaler().decide([crowded], (), 0.0)["slow"].replicas == 2


def test_from_zero_and_back() -> None:
    world = World(FAST, SLOW)
    assert world.run([0.0] * 100) == {"fast": 0, "slow": 0}
    assert world.tick(100.0) == {"fast": 1, "slow": 0}
    assert world.run([100.0] * 200) == {"fast": 1, "slow": 0}
    assert world.run([0.0] * 30) == {"fast": 1, "slow": 0}
    assert world.run([0.0] * 100) == {"fast": 0, "slow": 0}


def test_a_pool_that_never_ran_is_tried_when_the_others_do_not_suffice() -> None:
    known = msgspec.structs.replace(FAST, replicas=1, max_replicas=1, used_rate=5000.0, waiting=9.0)
    never = msgspec.structs.replace(SLOW, full_rate=0.0)
    decided = Autoscaler().decide([known, never], (), 0.0)
    assert decided["slow"].replicas == 1
    # One, until it tells what it can do.
    starting = msgspec.structs.replace(never, replicas=1)
    assert Autoscaler().decide([known, starting], (), 0.0)["slow"].replicas == 1


def replicas_of(pool: PoolDemand, *others: PoolDemand, scaler: Autoscaler, now_s: float) -> int:
    return scaler.decide((pool, *others), (), now_s)[pool.name].replicas


@pytest.mark.parametrize("others", [(), (msgspec.structs.replace(FAST, replicas=2),)])
def test_the_first_replica_of_a_pool_is_left_to_start(others: tuple[PoolDemand, ...]) -> None:
    scaler = Autoscaler(KEEP_S)
    pool = msgspec.structs.replace(SLOW, full_rate=0.0)
    idle_s = 2 * KEEP_S
    for now_s in (0.0, KEEP_S, idle_s):
        assert replicas_of(pool, *others, scaler=scaler, now_s=now_s) == 0
    waited_for = msgspec.structs.replace(pool, waiting=1.0)
    assert replicas_of(waited_for, *others, scaler=scaler, now_s=idle_s + 1) == 1
    starting = msgspec.structs.replace(waited_for, replicas=1)
    for seconds in range(2, 60):
        assert replicas_of(starting, *others, scaler=scaler, now_s=idle_s + seconds) == 1
    # It serves what had waited, and has not told of itself yet.
    begun = msgspec.structs.replace(starting, waiting=0.0)
    assert replicas_of(begun, *others, scaler=scaler, now_s=idle_s + 61) == 1
    # The control: when nobody has asked for so long, it goes.
    assert replicas_of(begun, *others, scaler=scaler, now_s=idle_s + 61 + 2 * KEEP_S) == 0


@pytest.mark.parametrize("half_s", [10.0, 30.0, 100.0, 290.0])
def test_a_square_wave_within_the_window_moves_nothing_after_its_first_rise(half_s: float) -> None:
    world = World(FAST, SLOW)
    world.run(square(100.0, 20_000.0, half_s, periods=20))
    assert set(world.history[2:]) == {world.history[2]}


def test_a_slow_square_wave_is_followed_once_each_way() -> None:
    world = World(FAST, SLOW)
    world.run(square(100.0, 20_000.0, half_s=1200.0, periods=4))
    # Eight edges, the first of them before anything was there.
    assert turns(world.history) == 6


def test_noise_at_the_threshold_does_not_flap() -> None:
    rng = random.Random(3)
    world = World(FAST, SLOW)
    world.run([0.8 * 10_000.0 * rng.uniform(0.9, 1.1) for _ in range(2000)])
    assert turns(world.history) == 0


def test_control_a_policy_without_memory_flaps() -> None:
    class Naive(Autoscaler):
        def _peak(self, name: str, value: float, now_s: float) -> float | None:
            return value

    for loads in (square(100.0, 20_000.0, 30.0, 20), noisy()):
        world = World(FAST, SLOW, scaler=Naive())
        world.run(loads)
        assert turns(world.history) >= 20


def noisy() -> list[float]:
    rng = random.Random(3)
    return [0.7 * 10_000.0 * rng.uniform(0.6, 1.4) for _ in range(2000)]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=40),
    st.floats(0.0, 40.0),
    st.integers(0, 2),
    st.integers(2, 9),
)
def test_quotas_hold_whatever_comes(
    loads: list[float], money: float, fewest: int, most: int
) -> None:
    bounds = {"min_replicas": fewest, "max_replicas": most}
    pools = [msgspec.structs.replace(pool, **bounds) for pool in (FAST, SLOW)]
    world = World(*pools, scaler=Autoscaler(KEEP_S, money))
    least = sum(fewest * pool.price_per_hour for pool in pools)
    for load in loads:
        counts = world.tick(load)
        assert all(fewest <= count <= most for count in counts.values())
        spent = sum(counts[pool.name] * pool.price_per_hour for pool in pools)
        assert spent <= max(money, least)


def test_after_a_restart_nothing_goes_before_a_whole_window_was_seen() -> None:
    world = World(msgspec.structs.replace(FAST, replicas=3))
    assert world.run([0.0] * int(KEEP_S / TICK_S)) == {"fast": 3}
    assert world.run([0.0] * 2) == {"fast": 0}


# --- drafters, vision encoders, ingresses ---------------------------------------------------------


def part(**changes: float) -> PartDemand:
    base = PartDemand(name="drafter", replicas=1, min_replicas=0, max_replicas=5, work=0.0)
    return msgspec.structs.replace(base, **changes)


def sized(work: Callable[[float], float], seconds: float, replicas: int = 1) -> list[int]:
    scaler, history, now_s = Autoscaler(KEEP_S), [replicas], 0.0
    while now_s < seconds:
        seen = part(work=work(now_s), replicas=history[-1])
        history.append(scaler.decide((), [seen], now_s)["drafter"].replicas)
        now_s += TICK_S
    return history


def test_a_part_follows_its_work_within_its_bounds() -> None:
    assert sized(lambda now_s: 0.5, 1000.0)[-1] == 1
    assert sized(lambda now_s: 2.0, 1000.0)[-1] == math.ceil(2.0 / AIM)
    assert sized(lambda now_s: 99.0, 1000.0)[-1] == 5
    assert sized(lambda now_s: 0.0, 1000.0)[-1] == 0
    assert sized(lambda now_s: 0.0, 200.0)[-1] == 1


def test_a_part_does_not_flap_under_a_square_wave() -> None:
    history = sized(lambda now_s: 3.0 if now_s % 100.0 < 50.0 else 0.1, 3000.0)
    assert turns(history) == 0
    assert FULL * history[-1] >= 3.0


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=400))
def test_a_window_tells_its_peak_and_stays_small(values: list[float]) -> None:
    window = PeakWindow(60.0, 0.0)
    for place, value in enumerate(values):
        window.add(value, float(place))
    now_s = len(values) - 1.0
    recent = values[-61:]
    if now_s < 60.0:
        assert window.peak(now_s) is None
    else:
        assert window.peak(now_s) >= max(recent)  # type: ignore[operator]  # it is seen whole
        assert window.peak(now_s) <= max(values[-62:])  # type: ignore[operator]
    assert len(vars(window)["_peaks"]) <= BUCKETS + 2
