"""A slip in an option is told in one line, before anything is loaded."""

from __future__ import annotations

import pytest

from smart_serve.bench.options import policies
from smart_serve.cli import main


def test_policies_may_hold_commas_of_their_own() -> None:
    text = "off,delayed:2,1,3,chain:3,distinct:2,2"
    assert policies(text) == ("off", "delayed:2,1,3", "chain:3", "distinct:2,2")


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
    ],
)
def test_values_that_cannot_be_meant(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *words])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert words[0] in told
