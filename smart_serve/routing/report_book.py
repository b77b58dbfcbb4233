"""The router's memory: soft state, rebuilt from the reports of a tenth of a second."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator

import msgspec

from smart_serve.messages import LoadReport, PrefixKey
from smart_serve.routing.cluster_view import ClusterView, ReplicaView
from smart_serve.routing.drafter_load import DrafterLoads
from smart_serve.routing.pool_load import PoolLoad, PoolSums
from smart_serve.routing.shared_calibration import NEWCOMER_STEPS, SharedCalibration

REPORT_MS = 100.0
"""Between two reports of a replica, in a cluster of any usual size."""
REPORT_COST_MS = 2.5
"""Of the router's processor for one report through Ray Serve (a handle call costs 2.5 to 3.8 ms at
both ends together). Replicas are asked to keep the router's core half free."""
MISSED_REPORTS = 30
"""As many missed: the replica is gone, or as good as gone."""
HOP_MS = 100.0
"""Through Serve, until the replica knows of a request."""
MAX_HOLDERS = 4
"""Replicas that are looked at for what they have cached."""


class ReportBook:
    """Owned by one router: the last reports, the sums over them, who has which prefix.

    A report costs the same whether there is one replica or thousands. Nothing in here outgrows the
    replicas that report. All times are the caller's clock, in ms.
    """

    def __init__(self) -> None:
        self._reports: dict[str, tuple[LoadReport, float]] = {}
        """By replica, the one that has been silent for longest first."""
        self._pools: dict[str, PoolSums] = {}
        self.drafters = DrafterLoads()
        self.calibration = SharedCalibration()
        self._holders: dict[int, dict[str, None]] = {}
        """By name of a prefix, the replicas that served it, the latest last."""
        self._sent: deque[tuple[float, str, str | None]] = deque()
        self._assigned: Counter[str] = Counter()
        self._assigned_to: Counter[str] = Counter()
        """Of those, the ones that were to prefer a replica."""

    @property
    def report_every_ms(self) -> float:
        """What replicas are asked to keep to."""
        return max(REPORT_MS, 2.0 * REPORT_COST_MS * len(self._reports))

    @property
    def on_the_way_ms(self) -> float:
        """Until a request is seen in a report; some replicas have just spoken when it comes."""
        return HOP_MS + 1.5 * self.report_every_ms

    def record(self, report: LoadReport, now_ms: float) -> None:
        """A newer report of a replica replaces the older one."""
        if report.calibration is not None:
            if report.learnt_steps >= NEWCOMER_STEPS:
                self.calibration.learn(report.replica_id, report.calibration)
            report = msgspec.structs.replace(report, calibration=None)
        old = self._reports.pop(report.replica_id, None)
        come: Iterable[int] = report.prefixes
        if old is not None:
            gone, come = changes(old[0].prefixes, report.prefixes)
            self._forget(old[0], gone)
        self._reports[report.replica_id] = report, now_ms
        self._pools.setdefault(report.pool, PoolSums(report.pool)).add(report)
        self.drafters.add(report)
        for name in come:
            self._holders.setdefault(name, {})[report.replica_id] = None
        self._expire(now_ms)

    def note_assigned(self, pool: str, replica: str | None, now_ms: float) -> None:
        """A request is on its way; it counts until a report must have seen it."""
        self._sent.append((now_ms, pool, replica))
        self._assigned[pool] += 1
        if replica is not None:
            self._assigned_to[replica] += 1

    def pools(self, now_ms: float) -> dict[str, PoolLoad]:
        """Load by pool, of the pools that reported lately."""
        self._expire(now_ms)
        loads = ((name, sums.load(self._assigned[name])) for name, sums in self._pools.items())
        return {name: load for name, load in loads if load is not None}

    def holders(self, prefixes: tuple[PrefixKey, ...]) -> Iterator[tuple[LoadReport, int, int]]:
        """(last report, requests on their way there, tokens of the prompt that it has cached) of
        the replicas that served the most of it, the latest first."""
        seen: set[str] = set()
        for key in prefixes:
            for replica in reversed(self._holders.get(key.name, {})):
                if len(seen) == MAX_HOLDERS:
                    return
                if replica not in seen:
                    seen.add(replica)
                    yield self._reports[replica][0], self._assigned_to[replica], key.num_tokens

    def view(self, now_ms: float) -> ClusterView:
        """All of it, for people and for those who go on without the router."""
        self._expire(now_ms)
        replicas = tuple(ReplicaView(report, now_ms - at) for report, at in self._reports.values())
        return ClusterView(replicas, dict(self._assigned))

    def _expire(self, now_ms: float) -> None:
        oldest = now_ms - MISSED_REPORTS * self.report_every_ms
        while self._reports:
            replica, (report, at) = next(iter(self._reports.items()))
            if at >= oldest:
                break
            del self._reports[replica]
            self._forget(report, report.prefixes)
        while self._sent and self._sent[0][0] < now_ms - self.on_the_way_ms:
            _, pool, preferred = self._sent.popleft()
            _count_down(self._assigned, pool)
            if preferred is not None:
                _count_down(self._assigned_to, preferred)

    def _forget(self, report: LoadReport, names: Iterable[int]) -> None:
        """What it adds to the sums, and these of its prefixes."""
        self._pools[report.pool].take_away(report)
        self.drafters.take_away(report)
        for name in names:
            holders = self._holders[name]
            del holders[report.replica_id]
            if not holders:
                del self._holders[name]


def changes(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[Iterable[int], Iterable[int]]:
    """(names to take away, names to add then), of two lists without doubles; one that has become
    the latest may be in both.

    The latest are last, so mostly some fell off in front and others came behind: to see that takes
    a quarter of the time of hashing a hundred names.
    """
    if old == new:
        return (), ()
    if new and new[0] in old:
        start = old.index(new[0])
        kept = old[start:]
        if new[: len(kept)] == kept:
            return old[:start], new[len(kept) :]
    return set(old).difference(new), set(new).difference(old)


def _count_down(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if counts[name] == 0:
        del counts[name]
