"""The plots of the documentation: what the command would draw, and files that stand alone."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import deploy
from smart_serve.bench.gallery import PLOTS
from smart_serve.bench.svg import Plot, Point, Series

FOLDER = Path(deploy.__file__).parent / "docs" / "plots"
MOST_BYTES = 40_000


def test_the_folder_holds_the_plots_and_nothing_else() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.svg" for name in PLOTS}


@pytest.mark.parametrize("name", ["costs", "decision"])
def test_a_plot_that_is_quickly_drawn_is_up_to_date(name: str) -> None:
    assert PLOTS[name]().image() == (FOLDER / f"{name}.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_light_stands_alone_and_says_that_it_is_simulated(name: str) -> None:
    text = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    root = ElementTree.fromstring(text)
    assert str(root.get("aria-label")).startswith("Simulated")
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<script|href|@import|url\(", text)


def test_title_and_legend_are_in_the_file() -> None:
    plot = Plot("a < b", "x", "y", (Series("one & two", (Point(1, 1), Point(2, 3))),))
    texts = [one.text for one in ElementTree.fromstring(plot.image()).iter() if one.text]
    assert {"a < b", "one & two", "x", "y"} <= set(texts)
