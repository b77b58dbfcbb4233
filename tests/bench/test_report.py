"""The page stands alone, says what was measured, and is well-formed."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from smart_serve.bench.figures import (
    Calibrations,
    Costs,
    Machine,
    Percentiles,
    Prediction,
    Reliability,
    Report,
    Row,
    Spread,
    TimeSplit,
)
from smart_serve.bench.report import costs_page, page
from smart_serve.bench.svg import HEIGHT_PX, WIDTH_PX, Axis, Plot, Point, Series
from smart_serve.speculation.cost import CostTable, Curve

RELIABILITY = Reliability((0.1, 0.9), (0.2, 0.8), (5, 50))
COSTS = Costs(
    CostTable((1, 4), (64, 384), ((Curve((1.0, 8.0), (2.0, 3.0)),) * 2, (Curve((4.0,), (2.5,)),))),
    Curve((1.0, 8.0), (0.5, 0.6)),
)


def row(policy: str, batch: int, speedup: float) -> Row:
    return Row(
        policy=policy, batch=batch, temperature=0.0, requests=12, rounds=3, tokens_per_s=100.0,
        speedup=Spread(speedup, speedup - 0.1, speedup + 0.1), tokens_per_step=2.0,
        nodes_per_step=4.0 if policy != "off" else 0.0,
        time_shares=TimeSplit(draft=0.3, verify=0.7), controller_ms=0.1,
        prediction=Prediction(1.01, 0.9), first_token_ms=Percentiles(1.0, 2.0, 3.0),
    )  # fmt: skip


def report(command: str = "smart-serve bench") -> Report:
    return Report(
        command=command,
        machine=Machine("cpu", 2, "3.11", "2", "5", "cpu"),
        workload="picture questions",
        rows=tuple(
            row(policy, batch, 1.0 + 0.1 * batch)
            for policy in ("off", "smart", "eagle2:8x4")
            for batch in (1, 4, 16)
        ),
        calibration=Calibrations(RELIABILITY, RELIABILITY),
        costs=COSTS,
    )


def body_of(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<body>.*</body>", text, re.DOTALL)[0])


def test_it_refers_to_nothing_outside_and_runs_nothing() -> None:
    text = page(report(), ("off", "smart"))
    assert not re.search(r"https?:|<script|<link|@import|url\(|\bsrc=", text)
    assert "prefers-color-scheme: dark" in text


def test_every_plot_and_policy_is_there_and_single_trees_are_not() -> None:
    body = body_of(page(report(), ("off", "smart")))
    captions = [caption.text for caption in body.iter("figcaption")]
    assert len(captions) == 5
    cells = [cell.text for cell in body.iter("td")]
    assert cells.count("smart") == 3
    assert "eagle2:8x4" not in "".join(body.itertext())


def test_hostile_words_stay_words() -> None:
    evil = "<script>alert('&')</script>"
    text = page(report(command=evil), ("off",))
    assert "<script" not in text
    assert evil in "".join(body_of(text).itertext())


def test_cost_tables_of_different_lengths_are_drawn() -> None:
    assert len(list(body_of(costs_page("costs", COSTS)).iter("polyline"))) == 4


def test_points_stand_where_their_values_say() -> None:
    series = Series("a", (Point(1.0, 0.0), Point(4.0, 5.0, 4.0, 10.0)))
    figure = ElementTree.fromstring(Plot("t", "x", "y", (series,)).figure())
    low, high = ((float(c.get("cx")), float(c.get("cy"))) for c in figure.iter("circle"))
    assert low[0] < high[0] <= WIDTH_PX
    # 5 of 0..10 is half way up.
    top = HEIGHT_PX - 2 * (HEIGHT_PX - high[1]) + (HEIGHT_PX - low[1])
    assert 0 <= top < high[1] < low[1] < HEIGHT_PX


@pytest.mark.parametrize(
    ("values", "is_log", "ticks"),
    [([1, 2, 32], True, [1, 2, 4, 8, 16, 32]), ([0.3, 2.1], False, [0, 0.5, 1, 1.5, 2])],
)
def test_ticks_are_round(values: list[float], is_log: bool, ticks: list[float]) -> None:
    assert Axis.over("x", values, is_log=is_log).ticks() == pytest.approx(ticks)


def test_nothing_to_draw_is_no_figure() -> None:
    assert Plot("t", "x", "y", ()).figure() == ""
