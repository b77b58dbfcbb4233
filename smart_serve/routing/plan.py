"""A replica's report to its envelope: how far it may speculate until the next report."""

from __future__ import annotations

import msgspec

from smart_serve.config import SpeculationConfig
from smart_serve.messages import LoadReport, SpeculationPlan
from smart_serve.routing.cluster_view import ClusterView

PLAN_TTL_MS = 1_000.0
"""Ten reports. A replica that has lost the router for longer plans for itself."""


class PlanBounds(msgspec.Struct, frozen=True):
    """What the application allows in one pool, and how many drafters all pools share."""

    speculation: SpeculationConfig
    drafter_replicas: int = 1
    """0: each target has a drafter of its own, in its process."""


def plan_for(
    report: LoadReport, view: ClusterView, bounds: PlanBounds, epoch: int
) -> SpeculationPlan:
    """The envelope for the replica that reported."""
    speculation = bounds.speculation
    return SpeculationPlan(
        policy=speculation.policy,
        max_nodes=speculation.max_nodes,
        max_depth=speculation.max_depth,
        top_k=speculation.top_k,
        draft_cost_factor=draft_cost_factor(report, view, bounds.drafter_replicas),
        epoch=epoch,
        ttl_ms=PLAN_TTL_MS,
    )


def draft_cost_factor(report: LoadReport, view: ClusterView, drafter_replicas: int) -> float:
    """How much slower the shared drafters are about to be than the replica now measures.

    The wait behind other targets is in the replica's own measured step already. What it cannot see
    is the backlog of the others: their drafting grows with the batch that they are about to have.

        (1 + Σ_others share · (running + waiting)/running / D) / (1 + Σ_others share / D)

    with share = draft_ms / step_ms, the part of its time for which a target occupies a drafter.
    """
    if drafter_replicas == 0:
        return 1.0
    now = soon = 0.0
    for one in view.replicas:
        other = one.report
        if other.replica_id == report.replica_id or other.running == 0 or other.step_ms <= 0:
            continue
        share = min(1.0, other.draft_ms / other.step_ms)
        now += share
        soon += min(1.0, share * (other.running + other.waiting) / other.running)
    return (1.0 + soon / drafter_replicas) / (1.0 + now / drafter_replicas)
