"""One simulated target replica: a batch that advances together, a queue, a prefix cache."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass

from smart_serve.bench.simulator.machine import Machine
from smart_serve.bench.simulator.simulation import HOST_MS
from smart_serve.messages import LoadReport
from smart_serve.speculation.cost import Curve

SPEEDUP = Curve((1.0, 4.0, 16.0, 64.0), (2.4, 2.2, 1.7, 1.1))
"""Of drafting over plain decoding, by batch: what `smart-serve simulate` gives for LLaVA-1.5-7B,
rounded; beyond the last batch there is none left."""
PICTURES_KEPT = 48
"""Whose KV blocks a replica still has: 30,000 tokens."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request of the simulated load."""

    number: int
    arrival_ms: float
    picture: int
    picture_tokens: int
    text_tokens: int
    max_tokens: int
    tokens: int
    """What it will truly generate, which nobody knows before."""

    @property
    def prompt_tokens(self) -> int:
        return self.picture_tokens + self.text_tokens


class Kind:
    """A device with a model on it: what everything costs there. Shared by its replicas."""

    def __init__(self, machine: Machine, places: int, price_per_hour: float) -> None:
        self.name = machine.device.name
        self.places = places
        self.price_per_hour = price_per_hour
        context = float(machine.shape.context)
        plain = [machine.verify_ms(n, n, context) + HOST_MS for n in range(1, places + 1)]
        self.token_ms = [ms / max(1.0, SPEEDUP(n)) for n, ms in enumerate(plain, 1)]
        """By batch, from one on."""
        self.plain_steps = tuple(
            (n, plain[n - 1]) for n in sorted({1, max(1, places // 4), places})
        )
        long = machine.verify_ms(512, 1, context) - machine.verify_ms(1, 1, context)
        self.prompt_token_ms = long / 511

    def busy_ms(self, prompt_tokens: float, tokens: float) -> float:
        """What such a request takes of a replica with a full batch."""
        decode_ms = tokens * self.token_ms[-1] / self.places
        return prompt_tokens * self.prompt_token_ms + decode_ms


class Server:
    """Running sequences share a clock of tokens, which stands still while a prompt is read."""

    def __init__(self, name: str, kind: Kind) -> None:
        self.name, self.kind = name, kind
        self.version = 0
        """Of the time that `next_end_ms` gives; what was scheduled for an older one is void."""
        self.found = 0
        """Pictures that were still in the cache."""
        self._now_ms = self._stalled_until_ms = self._clock = 0.0
        self._running: list[tuple[float, int, Job]] = []
        """A heap by the clock at which each ends."""
        self._waiting: deque[Job] = deque()
        self._pictures: OrderedDict[int, None] = OrderedDict()

    @property
    def load(self) -> int:
        return len(self._running) + len(self._waiting)

    def take(self, job: Job, now_ms: float) -> None:
        self._advance(now_ms)
        self._waiting.append(job)
        self._admit()

    def end_one(self, now_ms: float) -> Job:
        """The sequence that ends now."""
        self._advance(now_ms)
        _, _, job = heapq.heappop(self._running)
        self._admit()
        return job

    def next_end_ms(self) -> float | None:
        """When the next sequence ends if nothing else happens."""
        self.version += 1
        if not self._running:
            return None
        left = max(0.0, self._running[0][0] - self._clock)
        return max(self._now_ms, self._stalled_until_ms) + left * self._token_ms()

    def report(self, pool: str) -> LoadReport:
        """As a replica tells of itself."""
        running, busy = len(self._running), bool(self._running)
        token_ms = self._token_ms() if busy else 0.0
        return LoadReport(
            replica_id=self.name,
            pool=pool,
            device_type=self.kind.name,
            running=running,
            waiting=len(self._waiting),
            free_blocks=1_000_000,
            total_blocks=1_000_000,
            tokens_per_s=1e3 * running / token_ms if busy else 0.0,
            step_ms=token_ms,
            draft_ms=0.0,
            verify_ms=token_ms,
            accepted_per_step=0.0,
            nodes_per_step=0.0,
            plan_epoch=0,
            max_running=self.kind.places,
            batch=float(running),
            token_ms=token_ms,
            plain_steps=self.kind.plain_steps,
            prompt_token_ms=self.kind.prompt_token_ms,
            prefixes=tuple(self._pictures),
        )

    def _advance(self, now_ms: float) -> None:
        since = max(self._now_ms, min(now_ms, self._stalled_until_ms))
        if self._running:
            self._clock += (now_ms - since) / self._token_ms()
        self._now_ms = now_ms

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.kind.places:
            job = self._waiting.popleft()
            new_tokens = job.prompt_tokens
            if job.picture in self._pictures:
                new_tokens -= job.picture_tokens
                self.found += 1
            self._pictures[job.picture] = None
            self._pictures.move_to_end(job.picture)
            if len(self._pictures) > PICTURES_KEPT:
                self._pictures.popitem(last=False)
            reading_ms = new_tokens * self.kind.prompt_token_ms
            self._stalled_until_ms = max(self._now_ms, self._stalled_until_ms) + reading_ms
            heapq.heappush(self._running, (self._clock + job.tokens, job.number, job))

    def _token_ms(self) -> float:
        return self.kind.token_ms[len(self._running) - 1]
