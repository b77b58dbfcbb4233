"""A controller and a drafter that tell what they took; they decide as they would without."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from smart_serve.bench.figures import Calibrations, Reliability
from smart_serve.drafters.protocol import DraftBatch, Drafter, DrafterInfo, Proposal
from smart_serve.speculation.controller import SpeculationController
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.step_observation import StepObservation
from smart_serve.speculation.tree import FloatArray, Forest

BINS = 16


class ClockedController(SpeculationController):
    """Its own time, its prediction of each step, and how reliable confidences were."""

    spent_ms = 0.0
    """Since `reset`: planning and learning."""
    predicted_ms: float | None = None
    """Of the step that it learnt from since `reset`, before it did."""

    def reset(self) -> None:
        self.spent_ms, self.predicted_ms = 0.0, None

    def plan(
        self,
        policy: str,
        batch: int,
        context: float,
        catch_up_rows: int,
        *,
        may_overlap: bool = False,
    ) -> GrowthPlan | None:
        clock = time.perf_counter()
        plan = super().plan(policy, batch, context, catch_up_rows, may_overlap=may_overlap)
        self.spent_ms += 1e3 * (time.perf_counter() - clock)
        return plan

    def observe(self, seen: StepObservation) -> None:
        predicted_ms = self.prices.predicted(seen).total_ms
        self.predicted_ms = predicted_ms if seen.is_mostly_decoding else None
        clock = time.perf_counter()
        super().observe(seen)
        self.spent_ms += 1e3 * (time.perf_counter() - clock)


class ClockedDrafter:
    """Another drafter's proposals, and what getting them took."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self.spent_ms = 0.0
        """Since `reset`, from each question to its answer."""
        self.policy_ms = 0.0
        """Of that, growing and choosing the trees."""

    def reset(self) -> None:
        self.spent_ms = self.policy_ms = 0.0

    @property
    def info(self) -> DrafterInfo:
        return self._drafter.info

    def propose(self, batch: DraftBatch) -> Proposal:
        clock = time.perf_counter()
        proposal = self._drafter.propose(batch)
        self.spent_ms += 1e3 * (time.perf_counter() - clock)
        self.policy_ms += proposal.growth.policy_ms
        return proposal

    def close(self, sequence_ids: Sequence[int]) -> None:
        self._drafter.close(sequence_ids)


class ReliabilityCount:
    """Counts, over steps, what was said of draft tokens and whether they were accepted."""

    def __init__(self) -> None:
        self._sums = np.zeros((2, 3, BINS))
        """[confidence or calibrated][said, accepted, count][bin]"""

    def add(self, seen: StepObservation) -> None:
        forest = seen.forest
        if forest.num_nodes == 0:
            return
        parents = _parents(forest)
        is_judged = (forest.parents == 0) | seen.accepted[parents]
        above = np.where(forest.parents == 0, 1.0, forest.path_probs[parents])
        calibrated = forest.path_probs / np.maximum(above, 1e-12)
        hit = seen.accepted[is_judged].astype(np.float64)
        for sums, said in zip(self._sums, (forest.confidences, calibrated), strict=True):
            judged = said[is_judged]
            bins = np.minimum((judged * BINS).astype(np.int64), BINS - 1)
            for row, weights in zip(sums, (judged, hit, np.ones(len(hit))), strict=True):
                row += np.bincount(bins, weights, minlength=BINS)

    def result(self) -> Calibrations | None:
        """None where nothing was drafted."""
        if not self._sums[:, 2].any():
            return None
        return Calibrations(*(_reliability(sums) for sums in self._sums))


def _reliability(sums: FloatArray) -> Reliability:
    said, accepted, count = sums[:, sums[2] > 0]
    return Reliability(
        tuple((said / count).tolist()),
        tuple((accepted / count).tolist()),
        tuple(count.astype(int).tolist()),
    )


def _parents(forest: Forest) -> np.ndarray:
    """Index of each node's parent among all nodes; of a root's child, any node's. [M]"""
    starts = np.repeat(forest.offsets[:-1], forest.sizes)
    return starts + np.maximum(forest.parents, 1) - 1
