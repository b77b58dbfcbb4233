"""The keyed uniforms: stable for ever, uniform, and unrelated between neighbours.

A stream resumed on another replica, or by another version, must draw the same numbers: the golden
values may never change. Statistical limits have a false-alarm probability of at most 1e-6 each;
keys are fixed, so a test that passes once passes always.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from kernels.sample import counter_uniform

MASK = 2**64 - 1
N = 200_000
Z_1E6 = 4.9
"""Two-sided standard normal quantile for 1e-6."""


def plain_mix(x: int) -> int:
    """SplitMix64's step and finaliser, in Python's own integers."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def plain_uniform(seed: int, position: int) -> float:
    keyed = (plain_mix(seed & MASK) + position * 0x9E3779B97F4A7C15) & MASK
    return (plain_mix(keyed) >> 11) * 2.0**-53


def uniforms(seeds: object, positions: object) -> np.ndarray:
    pair = np.broadcast_arrays(np.asarray(seeds, np.int64), np.asarray(positions, np.int64))
    return counter_uniform(pair[0].copy(), pair[1].copy())


def test_the_finaliser_is_splitmix64() -> None:
    """First output of the published generator for seed 1234567."""
    assert plain_mix(1234567) == 6457827717110365317


EXTREMES = [0, 1, -1, 2**63 - 1, -(2**63), 123_456_789]


@pytest.mark.parametrize("seed", EXTREMES)
def test_the_vectorised_form_equals_plain_integers(seed: int) -> None:
    positions = [0, 1, 2, 17, 2**31, 2**40]
    assert uniforms(seed, positions).tolist() == [plain_uniform(seed, p) for p in positions]


def test_golden_values() -> None:
    got = uniforms([0, 0, 1, -1, 2**63 - 1], [0, 1, 0, 7, 100_000])
    assert got.tolist() == GOLDEN


GOLDEN = [
    0.6524484863740322,
    0.7012121095215252,
    0.36818951565166946,
    0.7238582745899125,
    0.2781543965468831,
]


def test_values_stay_below_one_and_above_zero() -> None:
    values = uniforms(5, np.arange(N))
    assert values.min() >= 0.0
    assert values.max() < 1.0


@pytest.mark.parametrize("axis", ["positions", "seeds"])
def test_values_are_uniform(axis: str) -> None:
    counted = np.arange(N)
    values = uniforms(3, counted) if axis == "positions" else uniforms(counted, 3)
    counts = np.bincount((values * 256).astype(int), minlength=256)
    statistic = float(((counts - N / 256) ** 2 / (N / 256)).sum())
    assert abs(statistic - 255) / math.sqrt(2 * 255) < Z_1E6 + 1.0
    assert abs(values.mean() - 0.5) * math.sqrt(12 * N) < Z_1E6


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2**32, 0)])
def test_neighbouring_keys_are_unrelated(shift: tuple[int, int]) -> None:
    """Serial correlation, and a 16 x 16 table of pairs."""
    positions = 1 + np.arange(N // 100)
    seeds = np.repeat(np.arange(100), len(positions))
    positions = np.tile(positions, 100)
    a, b = uniforms(seeds, positions), uniforms(seeds + shift[0], positions + shift[1])
    assert abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(len(a)) < Z_1E6
    cells = np.bincount((a * 16).astype(int) * 16 + (b * 16).astype(int), minlength=256)
    expected = len(a) / 256
    statistic = float(((cells - expected) ** 2 / expected).sum())
    assert abs(statistic - 255) / math.sqrt(2 * 255) < Z_1E6 + 1.0


def test_related_keys_would_show() -> None:
    """The control: a generator that adds seed and position fails the test above at once."""
    seeds, positions = np.repeat(np.arange(100), 2_000), np.tile(np.arange(2_000), 100)
    careless = uniforms(0, seeds + positions)
    shifted = uniforms(0, seeds + 1 + positions - 1)
    assert abs(np.corrcoef(careless, shifted)[0, 1]) > 0.99


def test_no_key_repeats_another() -> None:
    seeds, positions = np.meshgrid(np.arange(-300, 300), np.arange(300))
    values = uniforms(seeds.ravel(), positions.ravel())
    assert len(np.unique(values)) == values.size
