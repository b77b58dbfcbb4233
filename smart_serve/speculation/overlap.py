"""Whether to draft for one half of the batch while the other half is verified.

    one after the other    draft(b) + verify(b)
    overlapped             2 · max(draft(b/2), verify(b/2))

Halves cost more than half: a device reads its weights for each of them, and each pays the hop to
the drafter. So this pays where the hop, or a busy drafter, keeps the target idle for long, and the
batch is large enough for a half of it to be cheaper than all. Cost alone decides; the tokens are
the same either way.

What the schedule promises is held against what such steps then take: where both ends share their
processors, or where now one and now the other is late, overlapped steps are slower than either.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.step_observation import StepObservation

ENTER = 1.05
"""Predicted gain at which overlapping starts: below, the prediction's own error decides."""
LEAVE = 1.0
FIRST_STEPS = 8
"""Steps that drafted, after which the hop and the trees' size are known well enough."""
LOOK_EVERY = 128
"""Overlapped plans between two that are not: a hop that has become shorter is hidden by what goes
on meanwhile."""
WEIGHT = 0.1
"""Of one step."""
CLIP = 4.0
"""Of what one stalled step may take, over what was predicted."""
FORGET = 1 / 256
"""Of what was seen against overlapping, for each plan that is not overlapped: after a bad time it
is tried again, for a few steps in some hundreds."""


class Phases(NamedTuple):
    """Of one step, in ms."""

    draft_ms: float
    """The hop included."""
    verify_ms: float
    """Host work included."""


def overlap_gain(whole: Phases, half: Phases) -> float:
    """Time of a step of the whole batch over that of two overlapped ones of half of it each."""
    return (whole.draft_ms + whole.verify_ms) / (2.0 * max(half.draft_ms, half.verify_ms))


class TreeSizes(NamedTuple):
    """Of recent steps, on average and for each sequence."""

    first_rows: float = 1.0
    """That the first pass ran."""
    num_later: float = 0.0
    """Further passes of the step."""
    later_rows: float = 0.0
    """That each of these ran."""
    nodes: float = 0.0
    """That were verified."""

    @staticmethod
    def of(seen: StepObservation) -> TreeSizes:
        """Those of one step that drafted."""
        first, *later = seen.layer_rows or (seen.batch,)
        return TreeSizes(
            # A prompt is caught up with once.
            first_rows=min(first / seen.batch, 2.0 + len(later)),
            num_later=float(len(later)),
            later_rows=sum(later) / max(1, len(later)) / seen.batch,
            nodes=seen.forest.num_nodes / seen.batch,
        )

    def phases(self, plan: GrowthPlan, batch: int) -> Phases:
        """What such trees cost for `batch` sequences, by the plan's prices for them."""
        draft_ms = plan.draft_layer(max(1.0, self.first_rows * batch))
        draft_ms += self.num_later * plan.draft_layer(max(1.0, self.later_rows * batch))
        verify_ms = np.interp(self.nodes * batch, plan.verify_knots, plan.verify_knot_ms)
        return Phases(plan.wire_ms + draft_ms, float(verify_ms))


class Overlap:
    """Knows how large trees have been and what steps have taken, and keeps from flapping. Owned by
    one controller."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Another drafter: what was learnt of the last one no longer counts."""
        self._sizes = TreeSizes()
        self._num_seen = 0
        self._is_on = False
        self._plans = 0
        """Since the last one that was not overlapped."""
        self._plan: dict[bool, GrowthPlan] = {}
        """The last one for a half (True), and for all."""
        self._log_ratio = {True: 0.0, False: 0.0}
        """Mean of measured over predicted time: of overlapped steps, and of the others."""

    def observe(self, seen: StepObservation) -> None:
        """A step that drafted."""
        own = TreeSizes.of(seen)
        self._observe_time(seen, own)
        self._num_seen += 1
        weight = max(WEIGHT, 1.0 / self._num_seen)
        mean = [old + weight * (new - old) for old, new in zip(self._sizes, own, strict=True)]
        self._sizes = TreeSizes(*mean)

    def gain(self, whole: GrowthPlan, half: GrowthPlan, batch: int) -> float:
        """How much faster overlapped steps under `half` are than steps under `whole`; 1.0: they
        are not to be overlapped."""
        self._plan = {True: half, False: whole}
        if self._num_seen < FIRST_STEPS:
            return 1.0
        gain = overlap_gain(
            self._sizes.phases(whole, batch), self._sizes.phases(half, -(-batch // 2))
        )
        gain *= math.exp(self._log_ratio[False] - self._log_ratio[True])
        self._is_on = gain > (LEAVE if self._is_on else ENTER)
        if not self._is_on:
            self._log_ratio[True] += FORGET * (self._log_ratio[False] - self._log_ratio[True])
        self._plans += 1
        if not self._is_on or self._plans >= LOOK_EVERY:
            self._plans = 0
            return 1.0
        return gain

    def _observe_time(self, seen: StepObservation, sizes: TreeSizes) -> None:
        is_overlapped = seen.turnaround_ms is not None
        if not self._plan or is_overlapped != (seen.left_out > 0):
            return  # the first overlapped step, or the last
        phases = sizes.phases(self._plan[is_overlapped], seen.batch)
        predicted_ms = max(phases) if is_overlapped else sum(phases)
        log_ratio = math.log(min(max(seen.step_ms / predicted_ms, 1 / CLIP), CLIP))
        self._log_ratio[is_overlapped] += WEIGHT * (log_ratio - self._log_ratio[is_overlapped])
