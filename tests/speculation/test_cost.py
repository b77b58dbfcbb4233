"""Cost curves: monotone, linear between and beyond knots; residuals move them the right way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.residuals import CLIP, Residuals

measurements = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=8)


@settings(deadline=None)
@given(values=measurements, points=st.lists(st.floats(0.0, 300.0), min_size=2, max_size=20))
def test_more_work_never_costs_less(values: list[float], points: list[float]) -> None:
    curve = Curve.monotone([2.0**i for i in range(len(values))], values)
    costs = curve.at(np.sort(np.asarray(points)))
    assert np.all(np.diff(costs) >= -1e-9)


@settings(deadline=None)
@given(values=measurements)
def test_knots_that_rise_are_kept_and_noise_is_lifted(values: list[float]) -> None:
    x = [2.0**i for i in range(len(values))]
    curve = Curve.monotone(x, values)
    assert [curve(point) for point in x] == pytest.approx(np.maximum.accumulate(values).tolist())


@settings(deadline=None)
@given(values=measurements, at=st.integers(0, 7), extra=st.floats(1.0, 100.0))
def test_a_disturbed_measurement_is_held_down_by_those_of_more_work(
    values: list[float], at: int, extra: float
) -> None:
    """All but the last, which nothing is known to lie above."""
    x, true = [2.0**i for i in range(len(values))], sorted(values)
    disturbed = list(true)
    disturbed[at % len(true)] += extra
    curve = Curve.measured(x, disturbed)
    assert list(curve.y) == sorted(curve.y)
    for i, (found, was) in enumerate(zip(curve.y, true, strict=True)):
        assert found >= was
        if i + 1 < len(true):
            assert found <= true[i + 1] or i + 1 == at % len(true)


def test_between_knots_linear_below_flat_and_beyond_with_the_last_slope() -> None:
    curve = Curve((1.0, 2.0, 4.0), (3.0, 5.0, 6.0))
    assert [curve(x) for x in (0.0, 1.0, 1.5, 3.0, 4.0, 8.0)] == [3.0, 3.0, 4.0, 5.5, 6.0, 8.0]
    assert Curve((4.0,), (2.0,))(100.0) == 2.0


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((), ()),
        ((1.0,), (1.0, 2.0)),
        ((2.0, 1.0), (1.0, 2.0)),
        ((1.0, 1.0), (1.0, 2.0)),
        ((1.0,), (-1.0,)),
        ((1.0,), (float("nan"),)),
    ],
)
def test_a_curve_that_is_none_is_refused(x: tuple[float, ...], y: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"knots|values"):
        Curve(x, y)


def flat(cost: float) -> Curve:
    return Curve((1.0, 100.0), (cost, cost))


TABLE = CostTable((1, 5), (100, 300), ((flat(1.0), flat(3.0)), (flat(5.0), flat(11.0))))


@pytest.mark.parametrize(
    ("batch", "context", "cost"),
    [
        (1, 100.0, 1.0), (5, 300.0, 11.0), (1, 200.0, 2.0), (3, 100.0, 3.0), (3, 200.0, 5.0),
        (99, 100.0, 5.0), (1, 0.0, 1.0), (1, 500.0, 5.0), (5, 400.0, 14.0),
    ],
)  # fmt: skip
def test_the_table_is_bilinear_inside_and_goes_on_with_the_context(
    batch: int, context: float, cost: float
) -> None:
    assert TABLE.verify_ms(np.asarray([10.0]), batch, context)[0] == pytest.approx(cost)
    assert TABLE.step_ms(10.0, batch, context) == pytest.approx(cost)


def test_a_batch_may_be_measured_at_fewer_contexts() -> None:
    ragged = CostTable((1, 5), (100, 300), ((flat(1.0), flat(3.0)), (flat(5.0),)))
    assert ragged.step_ms(10.0, 1, 300.0) == pytest.approx(3.0)
    assert ragged.step_ms(10.0, 5, 300.0) == pytest.approx(5.0)
    assert ragged.step_ms(10.0, 3, 300.0) == pytest.approx(4.0)


def test_a_step_costs_what_its_stair_does() -> None:
    """As graphs do: 9 tokens are padded to 16, and beyond the last graph nothing is padded."""
    curve = Curve((1.0, 100.0), (1.0, 100.0))
    table = CostTable((1,), (64,), ((curve,),), stairs=(8, 16))
    tokens = np.asarray([1.0, 8.0, 9.0, 16.0, 17.0, 200.0])
    expected = [8.0, 8.0, 16.0, 16.0, 17.0, 200.0]
    assert table.verify_ms(tokens, 1, 64.0).tolist() == pytest.approx(expected)
    assert [table.step_ms(n, 1, 64.0) for n in tokens] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("batches", "contexts", "curves"),
    [
        ((), (1,), ()),
        ((2, 1), (1,), ((flat(1.0),), (flat(1.0),))),
        ((1,), (1, 1), ((flat(1.0),),)),
        ((1, 2), (1,), ((flat(1.0),),)),
        ((1,), (1,), ((),)),
        ((1,), (1,), ((flat(1.0), flat(2.0)),)),
    ],
)
def test_a_table_that_is_none_is_refused(
    batches: tuple[int, ...], contexts: tuple[int, ...], curves: tuple[tuple[Curve, ...], ...]
) -> None:
    with pytest.raises(ValueError, match=r"batch"):
        CostTable(batches, contexts, curves)


@settings(deadline=None)
@given(ratio=st.floats(0.3, 3.5), region=st.integers(0, 10))
def test_residuals_come_to_the_measured_ratio(ratio: float, region: int) -> None:
    residuals, tokens = Residuals(), 2.0**region
    previous = 1.0
    for _ in range(300):
        residuals.observe(tokens, 10.0 * ratio, 10.0)
        factor = float(residuals.factors(np.asarray([tokens]))[0])
        assert min(previous, ratio) - 1e-9 <= factor <= max(previous, ratio) + 1e-9
        previous = factor
    assert previous == pytest.approx(ratio, rel=0.01)


def test_regions_not_seen_yet_follow_and_seen_ones_keep_their_own() -> None:
    """A price that is never paid (plain decoding, while drafting pays) must not fall behind."""
    residuals = Residuals()
    everywhere = np.asarray([1.0, 64.0, 4096.0])
    for _ in range(200):
        residuals.observe(1.0, 10.0, 10.0)
    for _ in range(200):
        residuals.observe(64.0, 20.0, 10.0)
    factors = residuals.factors(everywhere)
    assert factors[0] == pytest.approx(1.0)
    assert factors[1:] == pytest.approx([2.0, 2.0], rel=0.01)


def test_a_stalled_step_moves_little() -> None:
    residuals = Residuals()
    for _ in range(50):
        residuals.observe(8.0, 10.0, 10.0)
    residuals.observe(8.0, 1e9, 10.0)
    assert residuals.factors(np.asarray([8.0]))[0] < CLIP**0.06
