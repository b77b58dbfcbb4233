"""Calibration learns how often a confidence comes true, and is modest before it knows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_serve.speculation.calibration import ALPHA, Calibration, _isotonic, acceptance
from smart_serve.speculation.tree import Forest

CONFIDENCES = np.linspace(0.0, 1.0, 33)


def chains(confidences: np.ndarray, depth: int) -> Forest:
    """One chain of `depth` equal confidences for each given one."""
    size = len(confidences)
    depths = np.tile(np.arange(1, depth + 1), size)
    repeated = np.repeat(confidences, depth)
    return Forest(
        np.arange(size + 1) * depth, np.zeros(size * depth, np.int64), depths - 1, depths,
        repeated, repeated,
    )  # fmt: skip


def taught(truth: Callable[[np.ndarray, int], np.ndarray], steps: int) -> Calibration:
    rng = np.random.default_rng(0)
    calibration = Calibration(3)
    for _ in range(steps):
        confidences = rng.random(16)
        hits = [rng.random(16) < truth(confidences, depth) for depth in (1, 2, 3)]
        accepted = np.stack([hits[0], hits[0] & hits[1], hits[0] & hits[1] & hits[2]], axis=1)
        calibration.observe(chains(confidences, 3), accepted.reshape(-1))
    return calibration


def test_before_anything_is_seen_confidence_is_damped() -> None:
    for calibration in ((), Calibration(2).maps()):
        for depth in (1, 2, 9):
            got = acceptance(calibration, depth, CONFIDENCES)
            assert got == pytest.approx(ALPHA * CONFIDENCES)


@pytest.mark.parametrize("shape", ["overconfident", "underconfident", "by depth"])
def test_a_known_map_is_learnt(shape: str) -> None:
    def truth(confidences: np.ndarray, depth: int) -> np.ndarray:
        if shape == "overconfident":
            return confidences**3
        if shape == "underconfident":
            return np.sqrt(confidences)
        return confidences / depth

    maps = taught(truth, 800).maps()
    for depth in (1, 2):
        got = acceptance(maps, depth, CONFIDENCES)
        error = np.abs(got - truth(CONFIDENCES, depth))
        assert error[2:].max() < 0.12
        damped = np.abs(ALPHA * CONFIDENCES - truth(CONFIDENCES, depth))
        assert error.mean() < 0.5 * damped.mean()


def test_children_of_rejected_nodes_teach_nothing() -> None:
    """They were never judged: the target did not look there."""
    with_children, alone = Calibration(3), Calibration(3)
    for _ in range(20):
        with_children.observe(chains(np.full(50, 0.9), 3), np.zeros(150, np.bool_))
        alone.observe(chains(np.full(50, 0.9), 1), np.zeros(50, np.bool_))
    assert with_children.maps() == alone.maps()
    assert acceptance(alone.maps(), 1, np.asarray([0.9]))[0] < 0.05


def test_a_depth_of_which_little_was_seen_is_like_the_others() -> None:
    calibration = Calibration(4)
    for _ in range(20):
        calibration.observe(chains(np.full(50, 0.9), 2), np.ones(100, np.bool_))
    confidence = np.asarray([0.9])
    assert acceptance(calibration.maps(), 4, confidence)[0] > 0.95
    # What it shows itself soon counts for more.
    for _ in range(3):
        accepted = np.tile([True, True, True, False], 50)
        calibration.observe(chains(np.full(50, 0.9), 4), accepted)
    assert acceptance(calibration.maps(), 4, confidence)[0] < 0.1
    assert acceptance(calibration.maps(), 1, confidence)[0] > 0.95


def test_what_was_never_seen_does_not_outweigh_what_was() -> None:
    """A drafter that is always sure and always wrong is known for it within a hundred nodes."""
    calibration = Calibration(1)
    for _ in range(100):
        calibration.observe(chains(np.full(1, 0.9), 1), np.zeros(1, np.bool_))
    assert acceptance(calibration.maps(), 1, np.asarray([0.9]))[0] < 0.15


def test_a_change_of_topic_is_followed() -> None:
    calibration = taught(lambda c, depth: c, 600)
    for _ in range(1_500):
        calibration.observe(chains(np.full(4, 0.9), 1), np.zeros(4, np.bool_))
    assert acceptance(calibration.maps(), 1, np.asarray([0.9]))[0] < 0.2


@settings(deadline=None)
@given(steps=st.integers(0, 12), seed=st.integers(0, 1_000))
def test_maps_are_monotone_probabilities(steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    calibration = Calibration(2)
    for _ in range(steps):
        calibration.observe(chains(rng.random(4), 2), rng.random(8) < 0.5)
    for values in calibration.maps():
        assert np.all(np.diff(values) >= -1e-12)
        assert min(values) >= 0.0
        assert max(values) <= 1.0


weighted = st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 5)), min_size=1, max_size=8)


@settings(deadline=None)
@given(pairs=weighted)
def test_pooling_gives_the_closest_monotone_sequence(pairs: list[tuple[float, float]]) -> None:
    values, weights = (np.asarray(column) for column in zip(*pairs, strict=True))
    fitted = np.asarray(_isotonic(values, weights))
    assert np.all(np.diff(fitted) >= -1e-12)
    # Optimality: each pool is the weighted mean of what it pools (the projection's condition).
    for level in np.unique(fitted.round(12)):
        pool = np.isclose(fitted, level, atol=1e-11)
        mean = np.average(values[pool], weights=weights[pool])
        assert mean == pytest.approx(level, abs=1e-9)
    if np.all(np.diff(values) >= 0):
        assert fitted == pytest.approx(values)
