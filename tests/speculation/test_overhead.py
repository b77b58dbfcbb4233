"""Host time and the wire: known at once, not swayed by stalls."""

from __future__ import annotations

import pytest

from smart_serve.speculation.overhead import Overhead


def observed(*values: float) -> float:
    overhead = Overhead()
    for value in values:
        overhead.observe(value)
    return overhead.ms


def test_a_far_drafter_is_known_after_one_step() -> None:
    assert observed(20.0) == 20.0


def test_a_stalled_first_step_is_forgotten_at_the_second() -> None:
    assert observed(900.0, 2.0) == 2.0


def test_a_stall_later_on_moves_little() -> None:
    assert observed(*[2.0] * 10, 900.0) == pytest.approx(2.3)


def test_a_lasting_change_is_followed() -> None:
    assert observed(*[2.0] * 10, *[20.0] * 60) == pytest.approx(20.0, rel=0.05)
