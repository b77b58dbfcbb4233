"""What an ingress replica counts: its HTTP answers, and when the tokens of each answer came."""

from __future__ import annotations

import time

from deploy.metrics.exporter import Exporter


class AnswerClock:
    """When the parts of one answer came. Owned by whoever streams it."""

    def __init__(self) -> None:
        self.pool: str | None = None
        self.num_replicas = 0
        """That have served it."""
        self.num_tokens = 0
        self._num_first = 0
        self.longest_gap_s = 0.0
        self.begun_s = self.first_s = self.last_s = time.monotonic()

    def note_replica(self, pool: str) -> None:
        """The answer begins, or goes on, in `pool`."""
        self.pool = pool
        self.num_replicas += 1

    def note_tokens(self, count: int) -> None:
        """They came now."""
        now_s = time.monotonic()
        if self.num_tokens == 0:
            self.first_s, self._num_first = now_s, count
        else:
            self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_s)
        self.last_s = now_s
        self.num_tokens += count

    @property
    def inter_token_s(self) -> float | None:
        """Mean time for each token after those that came first; None: there are none."""
        later = self.num_tokens - self._num_first
        return (self.last_s - self.first_s) / later if later > 0 else None

    def figures(self) -> dict[str, str | int | float]:
        """For a span."""
        return {
            "pool": self.pool or "",
            "replicas": self.num_replicas,
            "completion_tokens": self.num_tokens,
            "first_token_ms": 1e3 * (self.first_s - self.begun_s),
            "longest_gap_ms": 1e3 * self.longest_gap_s,
        }


class IngressMetrics:
    """Owned by the replica."""

    def __init__(self) -> None:
        self._exporter = Exporter("ingress")
        self._exporter.add("router_absences", 0)

    def http(self, route: str, status: int) -> None:
        """One answer."""
        self._exporter.add("http_requests", route=route, status=str(status))

    def router_is_away(self) -> None:
        """A request was assigned without it."""
        self._exporter.add("router_absences")

    def answer(self, clock: AnswerClock, device_type: str) -> None:
        """An answer is over, in whatever way."""
        if clock.pool is None:
            return
        to, tags = self._exporter, {"pool": clock.pool, "device_type": device_type}
        to.add("resumes", clock.num_replicas - 1, **tags)
        if clock.num_tokens > 0:
            to.observe("first_token_seconds", clock.first_s - clock.begun_s, **tags)
        if clock.inter_token_s is not None:
            to.observe("inter_token_seconds", clock.inter_token_s, **tags)
            to.observe("longest_gap_seconds", clock.longest_gap_s, **tags)
