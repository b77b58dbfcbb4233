"""Why a request went where it did, and why a replica may speculate as far as it may."""

from __future__ import annotations

import logging

from deploy.log_line import log_line
from smart_serve.messages import Assignment, LoadReport, RequestShape, SpeculationPlan

MAX_REPLICAS = 4096
"""Whose last envelope is kept. Beyond, all are forgotten, and told once more."""


class DecisionLog:
    """Owned by the router. A request has one line; an envelope has one when it changes, for most
    are the same as the last, ten times a second."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._told: dict[str, tuple[object, ...]] = {}

    def assigned(self, shape: RequestShape, chosen: Assignment) -> None:
        """Serve adds the request's id."""
        figures = {
            "decision": "assign",
            "pool": chosen.pool,
            "target": chosen.replica,
            "reason": chosen.reason,
            "prompt_tokens": shape.prompt_tokens,
            "max_tokens": shape.max_tokens,
        }
        log_line(self._logger, figures)

    def planned(self, report: LoadReport, plan: SpeculationPlan) -> None:
        """The envelope in answer to a report."""
        # Its factor moves with every report of another target; a tenth is worth a line.
        factor = round(plan.draft_cost_factor, 1)
        bounds = (plan.policy, plan.max_nodes, plan.max_depth, plan.top_k, factor)
        if self._told.get(report.replica_id) == bounds:
            return
        if len(self._told) >= MAX_REPLICAS:
            self._told.clear()
        self._told[report.replica_id] = bounds
        figures = {
            "decision": "plan",
            "target": report.replica_id,
            "pool": report.pool,
            "policy": plan.policy,
            "max_nodes": plan.max_nodes,
            "max_depth": plan.max_depth,
            "top_k": plan.top_k,
            "draft_cost_factor": factor,
            "reason": plan.reason or None,
            "running": report.running,
            "waiting": report.waiting,
            "epoch": plan.epoch,
        }
        log_line(self._logger, figures)
