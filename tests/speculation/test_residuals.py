"""A table that is far off, say measured on a busy machine, is corrected within a few steps."""

from __future__ import annotations

import pytest

from smart_serve.speculation.residuals import Residuals


def test_the_first_observations_count_for_more() -> None:
    residuals = Residuals()
    for _ in range(3):
        residuals.observe(16, measured_ms=3.0, predicted_ms=1.0)
    assert 2.0 < residuals.factor(16) < 3.0
    # What was not seen is believed to be off by as much.
    assert residuals.factor(256) == pytest.approx(residuals.factor(16))


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
