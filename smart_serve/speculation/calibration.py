"""From draft confidence to acceptance probability: a monotone map per depth, learnt online.

Draft confidence is not acceptance probability, but every verified node whose parent was accepted
tells whether it was accepted itself. Until enough is known, confidence damped by α stands in
(SMART, arXiv 2604.09731, eq. 16: α = 0.8, stable from 0.7 to 0.9).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from smart_serve.messages import CalibrationCounts
from smart_serve.speculation.tree import FloatArray, Forest, IntArray

ALPHA = 0.8
NUM_KNOTS = 17
"""Confidences 0, 1/16, … 1; sixteen bins hold a reliability curve well (common practice)."""
PRIOR_WEIGHT = 8.0
"""Observations that the damped prior counts for in each bin."""
UNSEEN_WEIGHT = 0.1
"""Observations that a knot counts for, besides its own, when the map is made monotone."""
DAMPED = ALPHA * np.linspace(0.0, 1.0, NUM_KNOTS)
"""Acceptance at the knots while nothing is known: of the likeliest tokens."""
INHERITED = 400.0
"""Judged nodes that what others have learnt may count for: those of some hundred steps, after which
a replica's own experience outweighs it."""
DECAY = 0.999
"""Per update: the memory is about the last thousand steps, so a change of topic is followed."""


def acceptance(
    calibration: tuple[tuple[float, ...], ...], depth: int, confidences: FloatArray
) -> FloatArray:
    """Calibrated acceptance [n] of nodes at `depth` (1 for children of the root)."""
    if not calibration:
        return ALPHA * confidences
    values = calibration[min(depth, len(calibration)) - 1]
    calibrated: FloatArray = np.interp(confidences, _knots(len(values)), values)
    return calibrated


@functools.lru_cache(maxsize=8)
def _knots(count: int) -> FloatArray:
    return np.linspace(0.0, 1.0, count)


class Calibration:
    """Accepted and seen counts per (depth, knot). Owned by one controller."""

    def __init__(self, max_depth: int, prior: FloatArray = DAMPED) -> None:
        self._prior = prior
        self._seen = np.zeros((max_depth, NUM_KNOTS))
        self._accepted = np.zeros((max_depth, NUM_KNOTS))

    def observe(self, forest: Forest, accepted: NDArray[np.bool_]) -> None:
        """`accepted` [M] over the forest's nodes. Only nodes whose parent was accepted count."""
        if forest.num_nodes == 0:
            return
        starts = np.repeat(forest.offsets[:-1], forest.sizes)
        parent_nodes = starts + np.maximum(forest.parents, 1) - 1
        judged = (forest.parents == 0) | accepted[parent_nodes]
        self.count(forest.depths[judged], forest.confidences[judged], accepted[judged])

    def count(self, depths: IntArray, confidences: FloatArray, accepted: NDArray[np.bool_]) -> None:
        """What became of judged nodes, all [n]; depths are from 1."""
        depth = np.minimum(depths, len(self._seen)) - 1
        place = confidences * (NUM_KNOTS - 1)
        low = np.clip(place.astype(np.int64), 0, NUM_KNOTS - 2)
        high_weight = place - low
        self._seen *= DECAY
        self._accepted *= DECAY
        hit = accepted.astype(np.float64)
        # Each observation is shared between the two knots around it, as the map interpolates.
        cell = depth * NUM_KNOTS + low
        cells = np.concatenate((cell, cell + 1))
        weights = np.concatenate((1.0 - high_weight, high_weight))
        hits = weights * np.concatenate((hit, hit))
        for counts, amounts in ((self._seen, weights), (self._accepted, hits)):
            counts += np.bincount(cells, amounts, counts.size).reshape(counts.shape)

    def counts(self) -> CalibrationCounts:
        """What has been learnt so far."""
        seen, accepted = (c.astype(np.float32).tobytes() for c in (self._seen, self._accepted))
        return CalibrationCounts(seen, accepted)

    def inherit(self, counts: CalibrationCounts) -> None:
        """Adds what others have learnt; counts of trees of another depth are of no use."""
        if counts.size != 4 * self._seen.size:
            return
        seen, accepted = (
            np.frombuffer(data, np.float32).reshape(self._seen.shape)
            for data in (counts.seen, counts.accepted)
        )
        weight = INHERITED / max(INHERITED, float(seen.sum()))
        self._seen += weight * seen
        self._accepted += weight * np.minimum(seen, accepted)

    def maps(self) -> tuple[tuple[float, ...], ...]:
        """Per depth, acceptance at the knots: a posterior mean, made monotone."""
        # A depth of which little was seen is believed to be like the others together.
        pooled_accepted, pooled_seen = self._accepted.sum(axis=0), self._seen.sum(axis=0)
        pooled = (pooled_accepted + PRIOR_WEIGHT * self._prior) / (pooled_seen + PRIOR_WEIGHT)
        prior = np.asarray(_isotonic(pooled, pooled_seen + UNSEEN_WEIGHT))
        mean = (self._accepted + PRIOR_WEIGHT * prior) / (self._seen + PRIOR_WEIGHT)
        # Pooling weighs evidence: knots that nothing was seen of give way to their neighbours.
        # With the prior's weight a dozen of them would hold a useless drafter up for long.
        weight = self._seen + UNSEEN_WEIGHT
        rows = zip(mean, weight, strict=True)
        return tuple(tuple(_isotonic(values, weights)) for values, weights in rows)


def _isotonic(values: FloatArray, weights: FloatArray) -> list[float]:
    """Closest non-decreasing sequence by weighted least squares: pool adjacent violators."""
    pools: list[tuple[float, float, int]] = []  # (mean, weight, count)
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, total, count = value, weight, 1
        while pools and pools[-1][0] > mean:
            last_mean, last_total, last_count = pools.pop()
            mean = (mean * total + last_mean * last_total) / (total + last_total)
            total, count = total + last_total, count + last_count
        pools.append((mean, total, count))
    return [mean for mean, _, count in pools for _ in range(count)]
