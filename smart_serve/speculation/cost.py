"""What a step costs on this device: measured tables, interpolated, corrected while running."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

import msgspec
import numpy as np

from smart_serve.speculation.tree import FloatArray


class Curve(msgspec.Struct, frozen=True):
    """A monotone piecewise-linear function; beyond its last knot it goes on with the last slope."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    """Milliseconds."""

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not self.x:
            raise ValueError("a curve needs as many values as knots, and at least one")
        if any(b <= a for a, b in itertools.pairwise(self.x)):
            raise ValueError("knots must increase")
        if min(self.y) < 0.0 or not math.isfinite(sum(self.y)):
            raise ValueError("values must be finite and not negative")

    @staticmethod
    def measured(x: Sequence[float], y: Sequence[float]) -> Curve:
        """From least times. What disturbs a measurement only ever adds to it, and more work never
        costs less: whatever lies above a later knot is brought down to it."""
        return Curve(tuple(map(float, x)), tuple(np.minimum.accumulate(y[::-1])[::-1].tolist()))

    @staticmethod
    def monotone(x: Sequence[float], y: Sequence[float]) -> Curve:
        """With what falls lifted to what came before."""
        return Curve(tuple(map(float, x)), tuple(np.maximum.accumulate(y).tolist()))

    def below(self, other: Curve) -> Curve:
        """Brought down to `other` where that was measured: of the same work with more context."""
        return Curve(
            self.x,
            tuple(
                min(y, other(x)) if other.x[0] <= x <= other.x[-1] else y
                for x, y in zip(self.x, self.y, strict=True)
            ),
        )

    def above(self, other: Curve) -> Curve:
        """Lifted to `other` wherever it lies below: of the same work with less context."""
        return Curve.monotone(self.x, np.maximum(self.y, other.at(np.asarray(self.x))).tolist())

    def at(self, points: FloatArray) -> FloatArray:
        """Values at `points` [n], in ms."""
        inside: FloatArray = np.interp(points, self.x, self.y)
        if len(self.x) < 2:
            return inside
        slope = (self.y[-1] - self.y[-2]) / (self.x[-1] - self.x[-2])
        return inside + np.maximum(points - self.x[-1], 0.0) * slope

    def __call__(self, point: float) -> float:
        """The value at one point: several times faster than an array of one."""
        x, y = self.x, self.y
        right = bisect.bisect_right(x, point)
        if right == 0 or len(x) == 1:
            return y[0]
        right = min(right, len(x) - 1)
        left = right - 1
        return y[left] + (point - x[left]) * (y[right] - y[left]) / (x[right] - x[left])


ALIKE = 1.5
"""Two measurements further apart are of different machines, or of one that was busy: a tree is kept
or left for a tenth of its price."""


def are_alike(known_ms: Sequence[float], found_ms: Sequence[float]) -> bool:
    """Whether each pair of measurements is within a factor of `ALIKE`."""
    pairs = zip(known_ms, found_ms, strict=True)
    return all(1 / ALIKE <= found / max(known, 1e-6) <= ALIKE for known, found in pairs)


class CostTable(msgspec.Struct, frozen=True):
    """`verify(tokens, batch, context)` in ms: one curve over packed tokens per (batch, context).

    Between two measured batches or contexts it is linear. Beyond the largest measured context it
    goes on, for attention reads every key once; beyond the batches the nearest one stands.
    """

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    """Committed tokens per sequence."""
    curves: tuple[tuple[Curve, ...], ...]
    """[batch][context], over the packed query tokens of the step. A batch may have been measured at
    the first few contexts only: where all of its sequences fit into the KV cache."""
    stairs: tuple[int, ...] = ()
    """Numbers of tokens to which a step is padded, rising; beyond the last one it is not."""

    def __post_init__(self) -> None:
        for knots in (self.batches, self.contexts):
            if not knots or any(b <= a for a, b in itertools.pairwise(knots)):
                raise ValueError("batches and contexts must increase, and there must be some")
        if len(self.curves) != len(self.batches):
            raise ValueError("a cost table needs curves for every batch")
        if not all(1 <= len(row) <= len(self.contexts) for row in self.curves):
            raise ValueError("every batch needs a curve for one context at least")

    def verify_ms(self, num_tokens: FloatArray, batch: int, context: float) -> FloatArray:
        """Predicted cost of target forwards over `num_tokens` [n] packed tokens. [n]"""
        total = np.zeros(len(num_tokens), np.float64)
        if self.stairs:
            stairs = np.asarray(self.stairs, np.float64)
            above = np.searchsorted(stairs, num_tokens).clip(max=len(stairs) - 1)
            num_tokens = np.maximum(num_tokens, stairs[above])
        for weight, curve in self._around(batch, context):
            total += weight * curve.at(num_tokens)
        return total

    def step_ms(self, num_tokens: float, batch: int, context: float) -> float:
        """The same for one step."""
        stair = bisect.bisect_left(self.stairs, num_tokens)
        if stair < len(self.stairs):
            num_tokens = self.stairs[stair]
        return sum(weight * curve(num_tokens) for weight, curve in self._around(batch, context))

    def _around(self, batch: int, context: float) -> list[tuple[float, Curve]]:
        """The measured curves around (batch, context) with their weights."""
        return [
            (batch_weight * context_weight, self.curves[i][j])
            for i, batch_weight in _neighbours(self.batches, min(batch, self.batches[-1]))
            for j, context_weight in _neighbours(self.contexts[: len(self.curves[i])], context)
        ]


def _neighbours(knots: Sequence[int], value: float) -> list[tuple[int, float]]:
    """Indices around `value` with their linear weights; past the last knot the line goes on."""
    if value <= knots[0] or len(knots) == 1:
        return [(0, 1.0)]
    right = min(bisect.bisect_right(knots, value), len(knots) - 1)
    weight = (value - knots[right - 1]) / (knots[right] - knots[right - 1])
    return [(right - 1, 1.0 - weight), (right, weight)]
