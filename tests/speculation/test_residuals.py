"""A table that is far off, say measured on a busy machine, is corrected within a few steps."""

from __future__ import annotations

import pytest

from smart_serve.speculation.residuals import Residuals


def test_the_first_observations_count_for_more() -> None:
    residuals = Residuals()
    for _ in range(3):
        residuals.observe(16, measured_ms=3.0, predicted_ms=1.0)
    assert 2.0 < residuals.factor(16) < 3.0
    # What was not seen is believed to be off as well, if not quite by as much.
    assert 2.0 < residuals.factor(256) < residuals.factor(16)


def test_one_stall_is_forgotten() -> None:
    residuals = Residuals()
    residuals.observe(16, measured_ms=100.0, predicted_ms=1.0)
    for _ in range(30):
        residuals.observe(16, measured_ms=1.0, predicted_ms=1.0)
    assert residuals.factor(16) == pytest.approx(1.0, abs=0.05)


def test_a_price_sixty_times_too_high_is_corrected() -> None:
    """A barrier of two threads on a machine with one free core takes a time slice, not a moment."""
    residuals = Residuals()
    for _ in range(16):
        residuals.observe(2, measured_ms=1.0, predicted_ms=60.0)
    assert 1 / 60 <= residuals.factor(2) < 1 / 40
    assert residuals.factor(64) < 1 / 20


def test_what_was_seen_is_not_swung_by_the_others() -> None:
    """Plain steps took what they should; then trees, which are padded, take half as much again."""
    residuals = Residuals()
    for _ in range(2):
        residuals.observe(32, measured_ms=8.0, predicted_ms=8.0)
    for _ in range(50):
        residuals.observe(128, measured_ms=15.0, predicted_ms=10.0)
    assert residuals.factor(128) == pytest.approx(1.5, abs=0.01)
    assert residuals.factor(32) < 1.3
    # The control: what was never seen moves along.
    assert residuals.factor(1024) > 1.45
