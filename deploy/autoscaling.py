"""Replicas of the whole application by one policy, in Serve's terms.

In a Serve config, beside `args` (there is no way to say it from Python):

    autoscaling_policy:
      policy_function: deploy.autoscaling:AppAutoscaling
      policy_kwargs: {keep_s: 300}

Serve's replicas speak every 10 s; `RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S` and
`RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S` in `runtime_env` say otherwise.
Deployments whose smallest and largest number of replicas differ are scaled; the others stay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from smart_serve.messages import LoadReport
from smart_serve.routing.autoscale import KEEP_S, Autoscaler, Decision, PartDemand, PoolDemand
from smart_serve.speculation.cost import Curve

logger = logging.getLogger("ray.serve")

TARGET_PREFIX = "target-"
LOOK_BACK_S = 12.0
"""Serve averages what it is told over this time, which must exceed its interval of 10 s."""
ONGOING = {"ingress": 48.0, "vision-encoder": 4.0, "drafter": 32.0}
"""Requests that keep one replica of these busy: a stream is little work, a picture much. A drafter
is leased; how busy a lease keeps it, its target tells."""
Stats = dict[str, float]


def serve_config(min_replicas: int, max_replicas: int, ongoing: float) -> AutoscalingConfig:
    """For one deployment. Serve's own delays are off: the policy decides when.

    `ongoing`: requests that one replica should have, where an application runs without the policy.
    """
    return AutoscalingConfig(
        min_replicas=min_replicas,
        initial_replicas=min_replicas,
        max_replicas=max_replicas,
        target_ongoing_requests=ongoing,
        look_back_period_s=LOOK_BACK_S,
        upscale_delay_s=0.0,
        downscale_delay_s=0.0,
    )


def target_stats(report: LoadReport, price_per_hour: float) -> Stats:
    """What a target tells the policy: numbers, as Serve demands."""
    plain_step = Curve(*zip(*report.plain_steps, strict=True))

    def plain_rate(batch: int) -> float:
        return 1e3 * batch / plain_step(batch) if batch else 0.0

    drafts = report.running > 0 and report.step_ms > 0.0
    return {
        "places": report.max_running,
        "waiting": report.waiting,
        "full_rate": plain_rate(report.max_running),
        "used_rate": plain_rate(report.running),
        "draft_share": report.draft_ms / report.step_ms if drafts else 0.0,
        "price_per_hour": price_per_hour,
    }


class AppAutoscaling:
    """The policy of one application. Serve keeps one in its controller and asks it again and again.

    It decides anew every `DECIDE_S`; in between, and for what it does not scale, nothing changes.
    """

    DECIDE_S = 1.0

    def __init__(self, keep_s: float = KEEP_S, max_price_per_hour: float | None = None) -> None:
        """`keep_s`: how long a replica stays that is not needed. `max_price_per_hour`: of all
        targets together."""
        self._scaler = Autoscaler(keep_s, max_price_per_hour)
        self._decided: dict[str, Decision] = {}
        self._next_s = 0.0
        self._last_seen: dict[str, Stats] = {}
        """Of the pools, from when they last had a replica."""

    def __call__(
        self, contexts: dict[DeploymentID, AutoscalingContext]
    ) -> tuple[dict[DeploymentID, int], dict[DeploymentID, dict[str, object]]]:
        """Replicas by deployment."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + self.DECIDE_S
            self._decide({key.name: context for key, context in contexts.items()})
        known = {key: self._decided[key.name] for key in contexts if key.name in self._decided}
        return {key: decision.replicas for key, decision in known.items()}, {}

    def _decide(self, contexts: Mapping[str, AutoscalingContext]) -> None:
        pools = [
            self._pool(name, context)
            for name, context in contexts.items()
            if name.startswith(TARGET_PREFIX)
        ]
        drafting = sum(
            sum(_metric(context, "draft_share").values())
            for name, context in contexts.items()
            if name.startswith(TARGET_PREFIX)
        )
        parts = [
            self._part(name, context, drafting)
            for name, context in contexts.items()
            if not name.startswith(TARGET_PREFIX)
        ]
        decided = self._scaler.decide(pools, parts, time.monotonic())
        for name, decision in decided.items():
            old = contexts[name].target_num_replicas
            if decision.replicas != old:
                logger.info("%s: %d to %d, %s", name, old, decision.replicas, decision.reason)
        self._decided = decided

    def _pool(self, name: str, context: AutoscalingContext) -> PoolDemand:
        metrics = {key: _metric(context, key) for key in ("waiting", "used_rate")}
        for key in ("places", "full_rate", "price_per_hour"):
            for value in _metric(context, key).values():
                self._last_seen.setdefault(name, {})[key] = value
        seen = self._last_seen.get(name, {})
        queued = float(context.total_queued_requests or 0.0)
        return PoolDemand(
            name=name,
            replicas=context.target_num_replicas,
            min_replicas=context.capacity_adjusted_min_replicas,
            max_replicas=context.capacity_adjusted_max_replicas,
            price_per_hour=seen.get("price_per_hour", 1.0),
            full_rate=seen.get("full_rate", 0.0),
            used_rate=sum(metrics["used_rate"].values()),
            waiting=queued + sum(metrics["waiting"].values()),
            places=seen.get("places", 1.0),
        )

    def _part(self, name: str, context: AutoscalingContext, drafting: float) -> PartDemand:
        work = float(context.total_num_requests or 0.0) / ONGOING[name]
        return PartDemand(
            name=name,
            replicas=context.target_num_replicas,
            min_replicas=context.capacity_adjusted_min_replicas,
            max_replicas=context.capacity_adjusted_max_replicas,
            work=max(work, drafting) if name == "drafter" else work,
        )


def _metric(context: AutoscalingContext, name: str) -> Mapping[object, float]:
    """Of each replica that has told it."""
    told: Mapping[str, Mapping[object, float]] = context.aggregated_metrics or {}
    return told.get(name, {})
