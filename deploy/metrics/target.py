"""A target replica's numbers to its metrics, once a second. The engine knows nothing of this."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, get_args

from deploy.metrics.exporter import Exporter
from smart_serve.messages import FinishReason, SpeculationPlan

if TYPE_CHECKING:
    # torch is loaded where the engine runs, not where the application is built.
    from deploy.drafter_lease import DrafterLease
    from smart_serve.engine.load import EngineLoad
    from smart_serve.engine.totals import EngineTotals

EXPORT_S = 1.0
"""Ray collects them every few seconds; an export takes about a third of a millisecond."""


class TargetMetrics:
    """Owned by the replica's event loop."""

    def __init__(self, pool: str, device_type: str) -> None:
        self._exporter = Exporter("target", pool=pool, device_type=device_type)
        self._plan = SpeculationPlan()
        self._plan_came_s = time.monotonic()

    def note_plan(self, plan: SpeculationPlan) -> None:
        """The router's envelope came."""
        self._plan, self._plan_came_s = plan, time.monotonic()

    def export(self, load: EngineLoad, lease: DrafterLease | None, kept_pictures: int) -> None:
        """`lease`: of a drafter elsewhere, where the application has one."""
        self._load(load)
        self._tokens(load.totals)
        self._times(load.totals)
        self._faults(load, lease)
        to = self._exporter
        to.raise_to("kept_pictures", kept_pictures)
        to.set("plan_epoch", self._plan.epoch)
        to.set("plan_age_seconds", time.monotonic() - self._plan_came_s)
        to.set("plan_max_nodes", self._plan.max_nodes)
        to.set("plan_draft_cost_factor", self._plan.draft_cost_factor)

    def _load(self, load: EngineLoad) -> None:
        to = self._exporter
        to.set("running", load.running)
        to.set("waiting", load.waiting)
        held = load.total_blocks - load.free_blocks - load.cached_blocks
        to.set("kv_blocks", held, state="held")
        to.set("kv_blocks", load.cached_blocks, state="cached")
        to.set("kv_blocks", load.free_blocks, state="free")
        to.set("drafter_connected", load.has_drafter)

    def _tokens(self, totals: EngineTotals) -> None:
        to = self._exporter
        for name in ("tokens", "prompt_tokens", "cached_tokens", "steps", "drafted_steps"):
            to.raise_to(name, getattr(totals, name))
        to.raise_to("draft_tokens", totals.accepted, outcome="accepted")
        to.raise_to("draft_tokens", totals.rejected, outcome="rejected")
        to.raise_to("expected_tokens", totals.expected)
        to.raise_to("judged_tokens", totals.judged)
        to.raise_to("tree_depth", totals.tree_depth)

    def _times(self, totals: EngineTotals) -> None:
        to = self._exporter
        for part, ms in totals.split_ms().items():
            to.raise_to("step_seconds", 1e-3 * ms, part=part)
        for name, cost in (
            ("predicted_seconds", totals.predicted),
            ("measured_seconds", totals.measured),
        ):
            to.raise_to(name, 1e-3 * cost.verify_ms, part="verify")
            to.raise_to(name, 1e-3 * cost.draft_ms, part="draft")
            to.raise_to(name, 1e-3 * cost.overhead_ms, part="overhead")
        to.raise_to("plain_seconds", 1e-3 * totals.plain_ms)

    def _faults(self, load: EngineLoad, lease: DrafterLease | None) -> None:
        to, totals = self._exporter, load.totals
        for end in get_args(FinishReason):
            to.raise_to("sequences", totals.ended.get(end, 0), end=end)
        to.raise_to("preemptions", totals.pre_emptions)
        to.raise_to("draft_failures", totals.draft_failures)
        to.raise_to("drafter_outages", lease.num_lost if lease else 0)
        to.set("drafter_wire_seconds", 1e-3 * ((lease and lease.wire_ms) or 0.0))
