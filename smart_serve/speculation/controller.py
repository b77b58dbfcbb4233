"""The controller of one target replica: prices, beliefs about the drafter, and whether to draft.

Everything is numbers; the engine asks `plan` before a step and tells `observe` after it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec.structs
import numpy as np

from smart_serve.config import SpeculationConfig
from smart_serve.messages import CalibrationCounts, SpeculationPlan
from smart_serve.speculation.ablations import ablated_plan
from smart_serve.speculation.adaptive_chain import AdaptiveChain
from smart_serve.speculation.bounds import bounds_of, knots_up_to
from smart_serve.speculation.calibration import Calibration
from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.draw_acceptance import DrawAcceptance
from smart_serve.speculation.fallback import Decision, Fallback, Outlook
from smart_serve.speculation.overlap import Overlap
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.prices import Prices
from smart_serve.speculation.profile import DrafterProfile
from smart_serve.speculation.promises import Promises
from smart_serve.speculation.static_tree import is_static, shape_of
from smart_serve.speculation.step_observation import StepObservation

MAPS_EVERY = 8
"""Steps between two refreshes of the calibration maps; they move slowly."""
TRIALS = 16
"""First steps that draft whatever is predicted: the first ones are slow for reasons of their own,
and a drafter judged by three of them was left for good though it doubled the speed. A useless one
has then cost about as many plain steps, once."""
PLAN_EVERY = 4
"""Steps that a plan stands for, while batch and context do, and of which one is learnt from: prices
and acceptance move by a few per cent at a time, and to look at them takes half a millisecond."""
SETTLED_STEPS = 16
"""Drafted steps after which both are known well enough for that."""
CONTEXT_STEP = 32
"""Committed tokens per sequence, on average, by which a context counts as another."""
PAYBACK_STEPS = 16
"""Catching up is paid once and serves all steps after it: going back to drafting must pay within
this many."""


@dataclass(slots=True)
class _Standing:
    """A plan that stands for some more steps, if they are like the one that it was made for."""

    asked: tuple[object, ...]
    plan: GrowthPlan
    steps_left: int


def is_smart(policy: str) -> bool:
    """Whether trees are sized by what they are worth, none at all among the choices."""
    return policy in ("smart", "smart-drawn")


class SpeculationController:
    """Owned by one engine. Knows the cost tables, corrects them, and applies the envelope."""

    def __init__(
        self,
        config: SpeculationConfig,
        costs: CostTable,
        layer_cost: Curve | None,
        terminal_tokens: frozenset[int] = frozenset(),
    ) -> None:
        self._config = config
        self._terminal_tokens = tuple(sorted(terminal_tokens))
        self.prices = Prices(costs, layer_cost)
        self._trials_left = TRIALS
        self._envelope: tuple[SpeculationPlan, float] | None = None
        self._calibration = Calibration(config.max_depth)
        self._maps = self._calibration.maps()
        self._has_inherited = False
        self._observed = 0
        self._profile = DrafterProfile(config.max_depth)
        self._draw_acceptance = DrawAcceptance()
        self._draw_maps = self._draw_acceptance.maps()
        self._draw_profile = DrafterProfile(config.max_depth)
        """What becomes of drawn tokens says little of the likeliest ones, and the reverse."""
        self._fallback = Fallback()
        self._promises = Promises()
        self._promised: float | None = None
        """Speedup that was predicted, uncorrected, for the step now under way, if it drafts."""
        self._adaptive_chain = AdaptiveChain(config.max_depth)
        self._shape = shape_of(config.policy)
        self._standing: _Standing | None = None
        self._is_watched = True
        """Whether the step now under way is learnt from, beyond its costs."""
        self._overlap = Overlap()

    @property
    def plan_epoch(self) -> int:
        return self._envelope[0].epoch if self._envelope else 0

    @property
    def learnt_steps(self) -> int:
        """Drafted steps that were learnt from."""
        return self._observed

    def calibration_counts(self) -> CalibrationCounts:
        """For replicas that have learnt nothing yet. May be read from any thread."""
        return self._calibration.counts()

    def set_envelope(self, plan: SpeculationPlan) -> None:
        """The router's bounds; they hold for the plan's time to live."""
        self._envelope = (plan, time.monotonic() + plan.ttl_ms / 1e3)
        if plan.calibration is not None and not self._has_inherited:
            self._has_inherited = True
            self._calibration.inherit(plan.calibration)
            self._maps = self._calibration.maps()

    def set_layer_cost(self, layer_cost: Curve | None) -> None:
        """A drafter came (its own measurements) or went (None)."""
        self._trials_left = TRIALS
        self.prices.layer_cost = layer_cost
        self._standing = None
        self._overlap.reset()

    def plan(
        self,
        policy: str,
        batch: int,
        context: float,
        catch_up_rows: int,
        *,
        may_overlap: bool = False,
    ) -> GrowthPlan | None:
        """How to draft for `batch` sequences of mean length `context`; None: decode plainly. Where
        it `may_overlap`, the plan may be for a half of them (`GrowthPlan.overlaps`)."""
        if policy == "off" or self.prices.layer_cost is None or batch == 0:
            return None
        envelope = self._current_envelope()
        if envelope is not None and envelope.policy == "off":
            return None
        if is_smart(policy) and self._trials_left == 0 and self._fallback.rests(batch):
            return None
        bounds = envelope and msgspec.structs.replace(envelope, epoch=0)
        asked = (policy, batch, int(context) // CONTEXT_STEP, bounds, may_overlap)
        standing = self._standing
        if standing is not None and standing.asked == asked and standing.steps_left > 0:
            standing.steps_left -= 1
            self._is_watched = False
            return standing.plan
        self._is_watched, self._standing = True, None
        plan = self._growth_plan(policy, batch, context, envelope)
        if policy == "adaptive-chain":
            return self._adaptive_chain.plan(plan, batch, catch_up_rows)
        gain, half = 1.0, plan
        if may_overlap and batch > 1:
            half = self._growth_plan(policy, -(-batch // 2), context, envelope)
            gain = self._overlap.gain(plan, half, batch)
        if is_smart(policy) and self._config.ablation != "no-fallback":
            decided = self._decided(plan, batch, catch_up_rows, gain)
            if decided is not plan:
                return decided
        if gain != 1.0:
            plan = msgspec.structs.replace(half, overlaps=True)
        if self._observed >= SETTLED_STEPS:
            again = msgspec.structs.replace(plan, is_watched=False)
            self._standing = _Standing(asked, again, PLAN_EVERY - 1)
        return plan

    def _decided(
        self, plan: GrowthPlan, batch: int, catch_up_rows: int, gain: float
    ) -> GrowthPlan | None:
        """`plan` itself if drafting pays by it (overlapped, by so much more), a probe, or None to
        decode plainly."""
        outlook = self._outlook(plan, batch, catch_up_rows).corrected(gain)
        kept = self._promises.factor(batch)
        decision = self._fallback.decide(batch, outlook.corrected(kept))
        if self._trials_left > 0:
            # Nothing is known of the drafter but what a pass costs: tried before it is judged.
            self._trials_left -= 1
            decision = Decision.PROBE if decision is Decision.PLAIN else decision
        self._promised = outlook.speedup if decision is Decision.DRAFT else None
        if decision is Decision.PROBE:
            return msgspec.structs.replace(plan, is_probe=True)
        if decision is Decision.DRAFT:
            return plan
        self._promises.forget(batch)
        return None

    def observe(self, seen: StepObservation) -> None:
        """Learn from a step: acceptance, costs, overhead."""
        self.prices.observe(seen)
        if seen.growth is None:
            return
        self._overlap.observe(seen)
        if is_smart(seen.policy):
            each = seen.all_decoding / seen.batch
            expected = seen.batch + float(seen.forest.path_probs.sum())
            came = seen.batch + int(np.count_nonzero(seen.accepted))
            self._promises.observe_tokens(seen.all_decoding, each * came, each * expected)
        # The plan of trees that were drafted ahead is not the newest one.
        is_ahead = seen.turnaround_ms is not None
        if not (seen.growth.best_by_depth if is_ahead else self._is_watched):
            return
        laws = seen.growth.laws
        if laws is None:
            self._calibration.observe(seen.forest, seen.accepted)
            self._profile.observe(seen.growth)
        elif seen.policy == "smart-drawn":
            self._draw_acceptance.observe_draws(seen.forest, laws, seen.accepted)
            self._draw_profile.observe(seen.growth)
        self._observed += 1
        if self._observed % MAPS_EVERY == 0:
            self._maps, self._draw_maps = self._calibration.maps(), self._draw_acceptance.maps()
        if is_smart(seen.policy) and self._promised is not None and not seen.prefill_tokens:
            tokens = seen.batch + float(seen.forest.path_probs.sum())
            batch = seen.all_decoding
            kept = tokens / seen.step_ms * self.prices.plain_step_ms(batch, seen.context) / batch
            self._promises.observe(batch, self._promised, kept)
        if seen.policy == "adaptive-chain":
            self._adaptive_chain.observe(seen.forest, seen.accepted)

    def _outlook(self, plan: GrowthPlan, batch: int, catch_up_rows: int) -> Outlook:
        # What a step accepts is caught up with in the next; what is more is a prompt's, or was
        # decoded plainly, and comes once.
        usual = batch * (plan.max_depth + 1) if self._fallback.is_drafting else batch
        usual = min(usual, catch_up_rows)
        rows = usual + (catch_up_rows - usual) // PAYBACK_STEPS
        drafted_ms = plan.wire_ms + plan.draft_layer(catch_up_rows)
        drafted_ms += float(np.interp(batch, plan.verify_knots, plan.verify_knot_ms))
        profile = self._draw_profile if plan.policy == "smart-drawn" else self._profile
        speedup, caught_up_speedup = profile.best_speedups(plan, batch, (rows, batch))
        return Outlook(
            speedup=speedup,
            caught_up_speedup=caught_up_speedup,
            probe_price=drafted_ms / plan.verify_knot_ms[0] - 1.0,
        )

    def _growth_plan(
        self, policy: str, batch: int, context: float, envelope: SpeculationPlan | None
    ) -> GrowthPlan:
        is_drawn = policy == "smart-drawn"
        bounds = bounds_of(policy, self._config, self._shape, batch, envelope)
        max_nodes = bounds.max_nodes
        knots = knots_up_to(max_nodes, batch, self.prices.stairs)
        plan = GrowthPlan(
            policy=policy,
            max_nodes=max_nodes,
            max_depth=bounds.max_depth,
            top_k=bounds.top_k,
            nodes_per_tree=bounds.nodes_per_tree,
            shape=self._shape if is_static(policy) else (),
            verify_knots=knots,
            verify_knot_ms=tuple(self.prices.verify_knot_ms(np.asarray(knots), batch, context)),
            draft_layer=self.prices.draft_curve(envelope.draft_cost_factor if envelope else 1.0),
            wire_ms=self.prices.wire_ms,
            calibration=self._draw_maps if is_drawn else self._maps,
            terminal_tokens=self._terminal_tokens,
            child_mass=(self._draw_profile if is_drawn else self._profile).child_mass,
        )
        ablation = self._config.ablation if policy == "smart" else None
        return plan if ablation is None else ablated_plan(plan, ablation, batch)

    def _current_envelope(self) -> SpeculationPlan | None:
        """The router's plan while it lives; afterwards the replica plans for itself."""
        if self._envelope is None or time.monotonic() > self._envelope[1]:
            return None
        return self._envelope[0]
