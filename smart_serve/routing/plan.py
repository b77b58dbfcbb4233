"""A replica's report to its envelope: how far it may speculate until the next report."""

from __future__ import annotations

import msgspec

from smart_serve.config import SpeculationConfig
from smart_serve.messages import CalibrationCounts, LoadReport, SpeculationPlan
from smart_serve.routing.drafter_load import batch_soon
from smart_serve.routing.report_book import ReportBook
from smart_serve.routing.shared_calibration import NEWCOMER_STEPS

TTL_REPORTS = 10.0
"""A replica that has lost the router for so many reports plans for itself."""


class PlanBounds(msgspec.Struct, frozen=True):
    """What the application allows in one pool."""

    speculation: SpeculationConfig


def plan_for(
    report: LoadReport, book: ReportBook, bounds: PlanBounds, epoch: int
) -> SpeculationPlan:
    """The envelope for the replica that reported; its report is in the book."""
    speculation = bounds.speculation
    targets, now, soon = book.drafters.others(report)
    every_ms = book.report_every_ms
    return SpeculationPlan(
        policy=speculation.policy,
        max_nodes=speculation.max_nodes,
        max_depth=speculation.max_depth,
        top_k=speculation.top_k,
        draft_cost_factor=draft_cost_factor(now, soon),
        epoch=epoch,
        ttl_ms=TTL_REPORTS * every_ms,
        report_every_ms=every_ms,
        calibration=_lesson(report, book),
        reason=_reason(report, targets, now, soon),
    )


def _lesson(report: LoadReport, book: ReportBook) -> CalibrationCounts | None:
    """For a replica that shows its own counts while they are empty: what the others know."""
    if report.calibration is None or report.learnt_steps >= NEWCOMER_STEPS:
        return None
    return book.calibration.merged(report.calibration.size)


def draft_cost_factor(others_now: float, others_soon: float) -> float:
    """How much slower the leased drafter is about to be than the replica now measures.

    The wait behind other targets is in the replica's own measured step already. What it cannot see
    is the backlog of the others: their drafting grows with the batch that they are about to have.

        (1 + Σ_others share · batch soon / batch now) / (1 + Σ_others share)

    with share = draft_ms / step_ms, the part of its time for which a target occupies its drafter.
    """
    return (1.0 + others_soon) / (1.0 + others_now)


def _reason(report: LoadReport, targets: int, now: float, soon: float) -> str:
    batch = f"batch {report.running}, soon {batch_soon(report)}"
    if targets <= 0:
        return f"{batch}; the drafter is its own"
    return f"{batch}; {targets} others on its drafter, {now:.0%} of its time, soon {soon:.0%}"
