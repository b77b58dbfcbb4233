"""What drafting promised is held against what it kept."""

from __future__ import annotations

import pytest

from smart_serve.speculation.promises import Promises


def after(promised: float, kept: float, steps: int = 200) -> Promises:
    promises = Promises()
    for _ in range(steps):
        promises.observe(64, promised, kept)
    return promises


@pytest.mark.parametrize("kept", [0.8, 1.0, 1.2])
def test_a_lasting_error_is_corrected(kept: float) -> None:
    assert after(1.04, kept).factor(64) == pytest.approx(kept / 1.04, rel=0.01)


def test_another_batch_is_not_blamed() -> None:
    assert after(1.04, 0.9).factor(4) == 1.0


def test_one_stalled_step_moves_little() -> None:
    assert after(1.04, 0.01, steps=1).factor(64) > 0.97


def test_credit_comes_back_while_nothing_is_drafted() -> None:
    promises = after(1.04, 0.9)
    low = promises.factor(64)
    for _ in range(500):
        promises.forget(64)
    assert low < 0.88 < 0.99 < promises.factor(64)


def test_a_drafter_that_brings_less_than_was_expected_is_believed_less() -> None:
    promises = Promises()
    for _ in range(60):
        promises.observe_tokens(4, came=4.0, expected=10.0)
    assert promises.factor(4) < 0.5
    assert promises.factor(64) == 1.0
    for _ in range(2_000):
        promises.forget(4)
    assert promises.factor(4) > 0.95


def test_luck_is_no_surprise() -> None:
    """Steps of one sequence bring one token or seven; their mean is what was expected."""
    promises = Promises()
    factors = []
    for step in range(400):
        promises.observe_tokens(1, came=7.0 if step % 2 else 1.0, expected=4.0)
        factors.append(promises.factor(1))
    assert factors[-1] == pytest.approx(1.0, abs=0.05)
    assert min(factors) > 0.9
