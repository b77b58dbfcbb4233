"""A snapshot of the cluster: the last report of every target replica."""

from __future__ import annotations

import msgspec

from smart_serve.messages import LoadReport
from smart_serve.routing.pool_load import PoolLoad, load_of


class ReplicaView(msgspec.Struct, frozen=True):
    """One replica's last report."""

    report: LoadReport
    age_ms: float


class ClusterView(msgspec.Struct, frozen=True):
    """Whoever holds it may go on with it while the router is away."""

    replicas: tuple[ReplicaView, ...] = ()
    assigned: dict[str, int] = {}
    """Per pool, requests that no report can hold yet."""

    def pools(self) -> dict[str, PoolLoad]:
        """Load by pool, of the pools that reported."""
        reports: dict[str, list[LoadReport]] = {}
        for one in self.replicas:
            reports.setdefault(one.report.pool, []).append(one.report)
        return {name: load_of(some, self.assigned.get(name, 0)) for name, some in reports.items()}

    def is_full(self, max_waiting: int) -> bool:
        """Whether every replica has `max_waiting` requests waiting; no replica is not full."""
        waiting = [one.report.waiting for one in self.replicas]
        return bool(waiting) and min(waiting) >= max_waiting

    def device_type(self, pool: str | None) -> str:
        """Of the pool's first replica; "unknown" where none has reported."""
        reports = (one.report for one in self.replicas)
        return next((one.device_type for one in reports if one.pool == pool), "unknown")
