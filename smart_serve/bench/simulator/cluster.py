"""A cluster of mixed devices under an open load, event by event, by the router's own code.

Nothing here measures anything.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from smart_serve.bench.simulator.server import Job, Kind, Server
from smart_serve.messages import PrefixKey, RequestShape
from smart_serve.routing.assign import Offer, assign
from smart_serve.routing.report_book import ReportBook

PICTURE_TOKENS = 576
TEXT_TOKENS = (16, 128)
MAX_TOKENS = 256
MEAN_TOKENS = 100.0
FOLLOW_UPS = 0.5
"""Of the requests ask about one of the last `RECENT` pictures."""
RECENT = 200


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas by kind. A kind is a pool."""

    kinds: tuple[tuple[Kind, int], ...]

    def servers(self) -> list[Server]:
        return [
            Server(f"{kind.name}-{number}", kind)
            for kind, count in self.kinds
            for number in range(count)
        ]

    @property
    def requests_per_ms(self) -> float:
        """With full batches, and none of the prompts cached."""
        prompt = PICTURE_TOKENS + sum(TEXT_TOKENS) / 2
        return sum(count / kind.busy_ms(prompt, MEAN_TOKENS) for kind, count in self.kinds)

    @property
    def price_per_hour(self) -> float:
        return sum(kind.price_per_hour * count for kind, count in self.kinds)


class ClusterFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One router on one fleet under one load. All of it is simulated."""

    router: str
    replicas: int
    load: float
    """Requests, as a share of those that full batches would serve."""
    tokens_per_s: float
    p50_ms: float
    p99_ms: float
    """From arrival to the last token."""
    price_per_million: float
    """Of tokens, with the whole fleet paid for until the last request ends."""
    cached_share: float
    """Of the pictures that were asked about again and found."""
    simulated: bool = True


Router = Callable[[Job, float], Server]
"""(job, now) -> where it goes."""


def round_robin(servers: Sequence[Server], rng: random.Random) -> Router:
    """Each in turn."""
    turn = itertools.cycle(servers)
    return lambda job, now_ms: next(turn)


def least_loaded(servers: Sequence[Server], rng: random.Random) -> Router:
    """The fewest requests, running and waiting, of all; known at once and exactly."""
    return lambda job, now_ms: min(servers, key=lambda server: server.load)


def two_choices(servers: Sequence[Server], rng: random.Random) -> Router:
    """The shorter queue of two at random: Serve's own rule, over all pools alike."""
    return lambda job, now_ms: _shorter_of_two(servers, rng)


def predicted(servers: Sequence[Server], rng: random.Random) -> Router:
    """The project's: a pool by predicted time from reports, then Serve's rule within it."""
    return _Predicted(servers, rng)


ROUTERS = {
    "round-robin": round_robin,
    "least-loaded": least_loaded,
    "two-choices": two_choices,
    "predicted": predicted,
}


class _Predicted:
    """The real book and the real choice; reports come round in turn, at the rate that it asks."""

    def __init__(self, servers: Sequence[Server], rng: random.Random) -> None:
        self._rng, self._book = rng, ReportBook()
        self._by_name = {server.name: server for server in servers}
        self._pools: dict[str, list[Server]] = {}
        for server in servers:
            self._pools.setdefault(server.kind.name, []).append(server)
        self._offers = tuple(Offer(pool) for pool in self._pools)
        self._due = [(0.0, server.name) for server in servers]

    def __call__(self, job: Job, now_ms: float) -> Server:
        self._hear(now_ms)
        shape = RequestShape(
            prompt_tokens=job.prompt_tokens,
            max_tokens=job.max_tokens,
            prefixes=(PrefixKey(job.picture_tokens, job.picture),),
        )
        book = self._book
        chosen = assign(shape, book.pools(now_ms), self._offers, book.holders(shape.prefixes))
        book.note_assigned(chosen.pool, chosen.replica, now_ms)
        if chosen.replica is not None:
            return self._by_name[chosen.replica]
        return _shorter_of_two(self._pools[chosen.pool], self._rng)

    def _hear(self, now_ms: float) -> None:
        while self._due[0][0] <= now_ms:
            due_ms, name = self._due[0]
            server = self._by_name[name]
            self._book.record(server.report(server.kind.name), due_ms)
            heapq.heapreplace(self._due, (due_ms + self._book.report_every_ms, name))


def run_cluster(
    router: str, fleet: Fleet, load: float, num_requests: int, seed: int = 0
) -> ClusterFigures:
    """All of `num_requests`, which arrive at random at `load` times what the fleet can do."""
    rng = random.Random(seed)
    servers = fleet.servers()
    run = _Run(ROUTERS[router](servers, rng))
    for job in _jobs(load * fleet.requests_per_ms, num_requests, random.Random(seed + 1)):
        run.until(job.arrival_ms)
        run.send(job)
    run.until(float("inf"))
    latencies = sorted(run.latencies_ms)
    return ClusterFigures(
        router=router,
        replicas=len(servers),
        load=load,
        tokens_per_s=1e3 * run.tokens / run.now_ms,
        p50_ms=latencies[len(latencies) // 2],
        p99_ms=latencies[int(0.99 * len(latencies))],
        price_per_million=1e6 * fleet.price_per_hour * run.now_ms / 3.6e6 / run.tokens,
        cached_share=sum(server.found for server in servers) / max(1, num_requests),
    )


@dataclass(slots=True)
class _Run:
    """The events of one simulation."""

    router: Router
    now_ms: float = 0.0
    tokens: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    _ends: list[tuple[float, int, int, Server]] = field(default_factory=list)
    _number: int = 0

    def send(self, job: Job) -> None:
        self.now_ms = job.arrival_ms
        server = self.router(job, self.now_ms)
        server.take(job, self.now_ms)
        self._schedule(server)

    def until(self, time_ms: float) -> None:
        """Every sequence that ends before."""
        while self._ends and self._ends[0][0] <= time_ms:
            end_ms, _, version, server = heapq.heappop(self._ends)
            if version != server.version:
                continue
            self.now_ms = end_ms
            job = server.end_one(end_ms)
            self.tokens += job.tokens
            self.latencies_ms.append(end_ms - job.arrival_ms)
            self._schedule(server)

    def _schedule(self, server: Server) -> None:
        end_ms = server.next_end_ms()
        if end_ms is not None:
            self._number += 1
            heapq.heappush(self._ends, (end_ms, self._number, server.version, server))


def _jobs(per_ms: float, count: int, rng: random.Random) -> Iterator[Job]:
    now_ms, pictures = 0.0, 0
    for number in range(count):
        now_ms += rng.expovariate(per_ms)
        if pictures and rng.random() < FOLLOW_UPS:
            picture = rng.randrange(max(0, pictures - RECENT), pictures)
        else:
            picture, pictures = pictures, pictures + 1
        yield Job(
            number=number,
            arrival_ms=now_ms,
            picture=picture,
            picture_tokens=PICTURE_TOKENS,
            text_tokens=rng.randrange(*TEXT_TOKENS),
            max_tokens=MAX_TOKENS,
            tokens=min(MAX_TOKENS, 1 + int(rng.expovariate(1.0 / MEAN_TOKENS))),
        )


def _shorter_of_two(servers: Sequence[Server], rng: random.Random) -> Server:
    one, two = rng.choice(servers), rng.choice(servers)
    return one if one.load <= two.load else two
