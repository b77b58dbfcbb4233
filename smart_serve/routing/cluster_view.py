"""What the router knows of the cluster: the last report of every target replica."""

from __future__ import annotations

import msgspec

from smart_serve.messages import LoadReport

EXPIRY_MS = 3_000.0
"""Thirty reports missed: the replica is gone, or as good as gone."""


class ReplicaView(msgspec.Struct, frozen=True):
    """One replica's last report."""

    report: LoadReport
    age_ms: float


class PoolLoad(msgspec.Struct, frozen=True):
    """A pool's replicas taken together; Serve spreads requests evenly within it."""

    pool: str
    replicas: int
    running: int
    waiting: int
    assigned: int
    """Requests sent here that no report can hold yet."""
    tokens_per_s: float
    step_ms: float
    """Mean over the replicas that have taken steps; 0: none has."""
    free_blocks: int
    total_blocks: int


class ClusterView(msgspec.Struct, frozen=True):
    """A snapshot; whoever holds it may go on with it while the router is away."""

    replicas: tuple[ReplicaView, ...] = ()
    assigned: dict[str, int] = {}
    """Per pool, requests assigned since its replicas last reported."""

    def pools(self) -> dict[str, PoolLoad]:
        """Load by pool, of the pools that reported."""
        names = dict.fromkeys(one.report.pool for one in self.replicas)
        return {name: self._pool(name) for name in names}

    def is_full(self, max_waiting: int) -> bool:
        """Whether every replica has `max_waiting` requests waiting; no replica is not full."""
        waiting = [one.report.waiting for one in self.replicas]
        return bool(waiting) and min(waiting) >= max_waiting

    def _pool(self, name: str) -> PoolLoad:
        reports = [one.report for one in self.replicas if one.report.pool == name]
        steps = [one.step_ms for one in reports if one.step_ms > 0]
        return PoolLoad(
            pool=name,
            replicas=len(reports),
            running=sum(one.running for one in reports),
            waiting=sum(one.waiting for one in reports),
            assigned=self.assigned.get(name, 0),
            tokens_per_s=sum(one.tokens_per_s for one in reports),
            step_ms=sum(steps) / len(steps) if steps else 0.0,
            free_blocks=sum(one.free_blocks for one in reports),
            total_blocks=sum(one.total_blocks for one in reports),
        )


class ReportBook:
    """Owned by the router: keeps the last reports and forgets silent replicas.

    All times are the caller's clock, in ms.
    """

    def __init__(self, expiry_ms: float = EXPIRY_MS) -> None:
        self._expiry_ms = expiry_ms
        self._reports: dict[str, tuple[LoadReport, float]] = {}
        self._assigned: dict[str, list[float]] = {}

    def record(self, report: LoadReport, now_ms: float) -> None:
        """A newer report of a replica replaces the older one."""
        self._reports[report.replica_id] = (report, now_ms)

    def note_assigned(self, pool: str, now_ms: float) -> None:
        """A request is on its way to `pool`; it counts until every replica has reported again."""
        self._assigned.setdefault(pool, []).append(now_ms)

    def view(self, now_ms: float) -> ClusterView:
        """A snapshot without the replicas that have been silent for too long."""
        oldest = now_ms - self._expiry_ms
        self._reports = {k: v for k, v in self._reports.items() if v[1] >= oldest}
        replicas = tuple(ReplicaView(report, now_ms - at) for report, at in self._reports.values())
        return ClusterView(replicas, self._still_on_their_way(oldest))

    def _still_on_their_way(self, oldest: float) -> dict[str, int]:
        for pool, times in self._assigned.items():
            reported = [at for report, at in self._reports.values() if report.pool == pool]
            known_until = min(reported, default=oldest)
            self._assigned[pool] = [at for at in times if at > known_until]
        return {pool: len(times) for pool, times in self._assigned.items() if times}
