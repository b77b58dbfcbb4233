"""A slip in an option is told in one line, before anything is loaded."""

from __future__ import annotations

import pytest

from smart_serve.bench.contestant import Contestant, under_rules
from smart_serve.bench.options import policies
from smart_serve.cli import main


def test_policies_may_hold_commas_of_their_own() -> None:
    text = "off,delayed:2,1,3,chain:3,distinct:2,2"
    assert policies(text) == ("off", "delayed:2,1,3", "chain:3", "distinct:2,2")


def test_rules_multiply_the_policies_whose_trees_they_may_verify() -> None:
    drawn = ("delayed:1,3,0", "delayed:2,0,2", "distinct:2,2")
    assert under_rules(("off", *drawn, "smart"), ("match", "spectr", "block")) == (
        *("off", "delayed:1,3,0", "delayed:1,3,0+spectr", "delayed:1,3,0+block"),
        *("delayed:2,0,2", "delayed:2,0,2+spectr", "distinct:2,2", "smart"),
    )
    assert under_rules(drawn[2:], ("block",)) == drawn[2:]


@pytest.mark.parametrize(
    ("name", "contestant"),
    [
        ("eagle2:4x2", Contestant("eagle2:4x2")),
        ("smart-path-mean", Contestant("smart", ablation="path-mean")),
        ("delayed:2,0,2+traversal", Contestant("delayed:2,0,2", "traversal")),
    ],
)
def test_a_name_says_who_takes_part(name: str, contestant: Contestant) -> None:
    assert Contestant.of(name) == contestant


@pytest.mark.parametrize(
    "words",
    [
        ["--batch", ""],
        ["--batch", "0"],
        ["--batch", "1,-4"],
        ["--batch", "1.5"],
        ["--batch", "4097"],
        ["--policies", "off,fastest"],
        ["--policies", "smart"],
        ["--policies", "off,smart,smart"],
        ["--policies", "off,static:/etc/passwd"],
        ["--temperature", "warm"],
        ["--temperature", "0,2.5"],
        ["--temperature", "inf"],
        ["--rounds", "0"],
        ["--requests", "x"],
        ["--verification", "match,hope"],
    ],
)
def test_values_that_cannot_be_meant(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *words])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert words[0] in told
