"""How many replicas of everything: trees shrink first, then the cheapest tokens are bought.

Load is counted in tokens per second of *plain* decoding: what the draft trees of a batch cost is
given up before anything is paid for, for they shrink by themselves as the batch grows. Requests go
to any pool, so the pools are sized together.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence, Set

import msgspec

FULL = 0.8
"""Share of full batches' tokens at which replicas are added."""
AIM = 0.7
"""Share that is aimed at then."""
IDLE = 0.6
"""Share that the others may not exceed once a replica has gone: below `AIM`, or the next small rise
would bring it back."""
KEEP_S = 300.0
"""A replica goes when it has not been needed for so long: longer than one takes to start."""
BUCKETS = 100
"""Steps in which a window of time moves on: its length and memory are bounded by them."""


class PoolDemand(msgspec.Struct, frozen=True, kw_only=True):
    """A pool of targets as it is now."""

    name: str
    replicas: int
    """Asked for: those that are still starting count, or they would be asked for again."""
    min_replicas: int
    max_replicas: int
    price_per_hour: float
    full_rate: float
    """Tokens per second of one replica with a full batch, decoding plainly; 0: not known yet."""
    used_rate: float
    """The same of all its replicas with the batches that they have."""
    waiting: float
    """Requests without a place in a batch, wherever they wait."""
    places: float
    """Of one replica's batch."""


class PartDemand(msgspec.Struct, frozen=True, kw_only=True):
    """Drafters, vision encoders or ingresses."""

    name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    work: float
    """Replicas that would be busy without a pause."""


class Decision(msgspec.Struct, frozen=True):
    """How many replicas there are to be, and why."""

    replicas: int
    reason: str


class PeakWindow:
    """The largest value of the last `length_s`. Owned by one `Autoscaler`."""

    def __init__(self, length_s: float, now_s: float) -> None:
        self._length_s, self._begun_s = length_s, now_s
        self._peaks: deque[tuple[float, float]] = deque()
        """(time, value): a value that a later one exceeds is of no more interest."""

    def add(self, value: float, now_s: float) -> None:
        step_s = self._length_s / BUCKETS
        while self._peaks and self._peaks[-1][1] <= value:
            self._peaks.pop()
        if not self._peaks or now_s - self._peaks[-1][0] >= step_s:
            self._peaks.append((now_s, value))
        else:
            # Within a step the larger value stands for both, and for a little longer.
            self._peaks[-1] = now_s, self._peaks[-1][1]
        while self._peaks[0][0] < now_s - self._length_s:
            self._peaks.popleft()

    def peak(self, now_s: float) -> float | None:
        """None: less than the whole window has been seen."""
        if now_s - self._begun_s < self._length_s:
            return None
        return self._peaks[0][1]


class Autoscaler:
    """Owned by one application. Grows at once, shrinks after `keep_s` without need."""

    def __init__(self, keep_s: float = KEEP_S, max_price_per_hour: float | None = None) -> None:
        """`max_price_per_hour`: of all target replicas together; None: no such bound."""
        self._keep_s, self._max_price = keep_s, max_price_per_hour
        self._windows: dict[str, PeakWindow] = {}
        self._rates: dict[str, float] = {}
        """Of pools when they were last seen: one that is empty now has a price all the same."""

    def decide(
        self, pools: Sequence[PoolDemand], parts: Sequence[PartDemand], now_s: float
    ) -> dict[str, Decision]:
        """Replicas by name. `now_s` never goes back."""
        decisions = {part.name: self._part(part, now_s) for part in parts}
        self._rates.update({pool.name: pool.full_rate for pool in pools if pool.full_rate > 0.0})
        fleet = _Fleet(pools, self._rates, self._max_price)
        demand = sum(fleet.demand(pool) for pool in pools)
        peak = self._peak("", demand, now_s)
        waited = {pool.name: self._peak(pool.name, pool.waiting, now_s) for pool in pools}
        fleet.wake()
        if demand > FULL * fleet.rate:
            fleet.grow(demand)
        elif peak is not None:
            fleet.shrink(peak, {name for name, most in waited.items() if most != 0.0})
        return decisions | fleet.decisions(demand)

    def _part(self, part: PartDemand, now_s: float) -> Decision:
        peak = self._peak(part.name, part.work, now_s)
        needed = math.ceil(part.work / AIM)
        if part.work > FULL * part.replicas:
            replicas = max(part.replicas, needed)
        elif peak is not None and peak <= IDLE * (part.replicas - 1):
            replicas = math.ceil(peak / IDLE)
        else:
            replicas = part.replicas
        replicas = min(max(replicas, part.min_replicas), part.max_replicas)
        return Decision(replicas, f"{part.work:.1f} of {part.replicas} busy")

    def _peak(self, name: str, value: float, now_s: float) -> float | None:
        window = self._windows.setdefault(name, PeakWindow(self._keep_s, now_s))
        window.add(value, now_s)
        return window.peak(now_s)


class _Fleet:
    """The pools while a decision about them is made."""

    def __init__(
        self, pools: Sequence[PoolDemand], rates: dict[str, float], max_price: float | None
    ) -> None:
        self._pools, self._rates = pools, rates
        self._max_price = math.inf if max_price is None else max_price
        self._counts = {
            pool.name: min(max(pool.replicas, pool.min_replicas), pool.max_replicas)
            for pool in pools
        }

    @property
    def rate(self) -> float:
        """Tokens per second of all, with full batches."""
        return sum(self._counts[pool.name] * self._rate(pool) for pool in self._pools)

    def demand(self, pool: PoolDemand) -> float:
        """Tokens per second that are asked of this pool; each request that waits wants a place."""
        return pool.used_rate + pool.waiting / max(1.0, pool.places) * self._rate(pool)

    def wake(self) -> None:
        """A request that waits at an empty pool can be served by no other."""
        for pool in self._pools:
            if pool.waiting > 0 and self._counts[pool.name] == 0 and self._may_add(pool):
                self._counts[pool.name] = 1

    def grow(self, demand: float) -> None:
        """Adds replicas where a token is cheapest, until the demand is met or no more may be."""
        by_price = sorted(self._pools, key=self._token_price)
        for pool in by_price:
            while AIM * self.rate < demand and self._rate(pool) > 0.0 and self._may_add(pool):
                self._counts[pool.name] += 1
        unknown = [pool for pool in by_price if self._rate(pool) == 0.0]
        if FULL * self.rate < demand and all(self._counts[pool.name] == 0 for pool in unknown):
            # Nothing is known of these but that the others do not suffice: one, and it will tell.
            for pool in unknown:
                if self._may_add(pool):
                    self._counts[pool.name] = 1
                    return

    def shrink(self, peak: float, awaited: Set[str]) -> None:
        """Takes replicas away where a token is dearest, as long as the others can do it all.

        `awaited`: pools where something waited lately. Their last replica stays: it may still be
        starting, with nothing known of it, for just what waits there.
        """
        for pool in sorted(self._pools, key=self._token_price, reverse=True):
            fewest = max(pool.min_replicas, int(pool.name in awaited))
            while self._counts[pool.name] > fewest:
                if peak > IDLE * (self.rate - self._rate(pool)):
                    break
                self._counts[pool.name] -= 1

    def decisions(self, demand: float) -> dict[str, Decision]:
        told = f"{demand:.0f} tokens/s asked, {self.rate:.0f} with full batches"
        return {
            pool.name: Decision(
                self._counts[pool.name], f"{told}; {self._token_price(pool):.3g} per token/s here"
            )
            for pool in self._pools
        }

    def _may_add(self, pool: PoolDemand) -> bool:
        spent = sum(self._counts[one.name] * one.price_per_hour for one in self._pools)
        within = spent + pool.price_per_hour <= self._max_price
        return within and self._counts[pool.name] < pool.max_replicas

    def _rate(self, pool: PoolDemand) -> float:
        return self._rates.get(pool.name, 0.0)

    def _token_price(self, pool: PoolDemand) -> float:
        """Per hour and token/s. A pool that nothing is known of is the dearest."""
        rate = self._rate(pool)
        return pool.price_per_hour / rate if rate > 0.0 else math.inf
