"""The Grafana dashboard speaks of documented metrics only, of all of them, and can be imported."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from deploy.metrics.dashboard import PATH, text
from deploy.metrics.promql import rate
from deploy.metrics.table import PREFIX, all_metrics

BOARD: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
PANELS = [one for one in BOARD["panels"] if one["type"] == "timeseries"]
QUERIES = [target["expr"] for one in PANELS for target in one["targets"]]
SERIES = {
    one.exported_name + ("_bucket" if one.kind == "histogram" else "") for one in all_metrics()
}


def names_in(expression: str) -> set[str]:
    return set(re.findall(rf"\bray_{PREFIX}\w+", expression))


def test_the_file_is_what_the_table_makes_of_it() -> None:
    assert PATH.read_text(encoding="utf-8") == text()


def test_every_query_names_a_documented_metric_and_every_metric_is_drawn() -> None:
    assert all(names_in(query) for query in QUERIES)
    assert set().union(*map(names_in, QUERIES)) == SERIES


def test_a_name_that_is_not_documented_cannot_be_asked_for() -> None:
    with pytest.raises(KeyError):
        rate("tokenz")
    assert not names_in("ray_smart_serve_tokenz_total") <= SERIES


def test_a_query_keeps_only_tags_that_its_metric_has() -> None:
    tags = {one.exported_name: one.tags for one in all_metrics()}
    for query in QUERIES:
        for name, selector in re.findall(rf"(ray_{PREFIX}\w+)\{{([^}}]*)\}}", query):
            for tag in re.findall(r'(\w+)="', selector):
                assert tag in tags[name], query


def test_every_variable_is_defined() -> None:
    defined = {one["name"] for one in BOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(BOARD))) - {"__all", "__rate_interval"}
    assert used == defined


def test_panels_have_their_own_numbers_and_places() -> None:
    numbers = [one["id"] for one in BOARD["panels"]]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    squares = list(itertools.chain.from_iterable(map(squares_of, BOARD["panels"])))
    assert len(set(squares)) == len(squares), "two panels overlap"
    assert {x for x, _ in squares} == set(range(24))
    for one in PANELS:
        letters = [target["refId"] for target in one["targets"]]
        assert len(set(letters)) == len(letters) > 0
        assert one["title"]
        assert one["datasource"]["uid"] == "${datasource}"


def squares_of(panel: dict[str, Any]) -> list[tuple[int, int]]:
    place = panel["gridPos"]
    across = range(place["x"], place["x"] + place["w"])
    down = range(place["y"], place["y"] + place["h"])
    return list(itertools.product(across, down))
