"""The router deployment: holds the cluster's load, assigns requests, sets envelopes."""

from __future__ import annotations

import logging
import time
from typing import Any

from deploy.args import AppArgs
from deploy.decision_log import DecisionLog
from deploy.live_bounds import narrowed_by
from deploy.metrics.exporter import Exporter
from smart_serve.messages import Assignment, LoadReport, RequestShape, SpeculationPlan
from smart_serve.routing.assign import assign
from smart_serve.routing.cluster_view import ClusterView
from smart_serve.routing.plan import PlanBounds, plan_for
from smart_serve.routing.report_book import ReportBook

logger = logging.getLogger("ray.serve")


class RouterReplica:
    """One replica; all it knows is in the targets' last reports, so a restart costs 100 ms.

    Token streams never pass through here.
    """

    def __init__(self, args: AppArgs) -> None:
        self._offers = args.offers()
        self._configured = {pool.name: args.engine_config(pool).speculation for pool in args.pools}
        self.reconfigure({})
        self._book = ReportBook()
        # Envelopes of a restarted router must be newer than those of its predecessor.
        self._epoch = int(time.time() * 1e3)
        self._metrics = Exporter("router")
        for offer in self._offers:
            self._metrics.add("assignments", 0, pool=offer.pool)
        self._log = DecisionLog(logger)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve calls this with what the operator changed (see `deploy.live_bounds`). Raises
        `ConfigError`."""
        bounds = narrowed_by(user_config, self._configured)
        self._bounds = {name: PlanBounds(one) for name, one in bounds.items()}

    async def assign(self, shape: RequestShape) -> Assignment:
        """The place for one request. Raises `ServerError` when there is none."""
        now_ms, book = _now_ms(), self._book
        chosen = assign(shape, book.pools(now_ms), self._offers, book.holders(shape.prefixes))
        book.note_assigned(chosen.pool, chosen.replica, now_ms)
        self._metrics.add("assignments", pool=chosen.pool)
        self._log.assigned(shape, chosen)
        return chosen

    async def report(self, report: LoadReport) -> SpeculationPlan:
        """Takes a target's load and answers with its envelope."""
        self._book.record(report, _now_ms())
        self._epoch += 1
        plan = plan_for(report, self._book, self._bounds[report.pool], self._epoch)
        self._log.planned(report, plan)
        return plan

    async def cluster(self) -> ClusterView:
        """The last reports and their ages."""
        return self._book.view(_now_ms())


def _now_ms() -> float:
    return time.monotonic() * 1e3
