"""The chaos run's judge: what it lets pass and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.chaos.clients import Heard
from tests.deploy.chaos.faults import Kill
from tests.deploy.chaos.report import is_good, report

EXPECTED = [Heard(0, "three red", 3, is_done=True, times_s=[0.0, 1.0, 2.0])]


def judged(text: str, tokens: int = 3, **fields: Any) -> dict[str, Any]:
    kills = fields.pop("kills", [])
    heard = Heard(0, text, tokens, **{"is_done": True, "times_s": [0.0, 1.0, 9.0], **fields})
    return {**report([heard], EXPECTED, kills), "mends": True}


def test_the_very_answer_passes_and_its_silence_is_told() -> None:
    result = judged("three red", kills=[Kill("target", 1.5, is_alone=True)])
    assert is_good(result)
    assert result["silence_s"]["target"]["max"] == 8.0
    assert not is_good({**result, "mends": False})


@pytest.mark.parametrize(
    ("verdict", "heard"),
    [
        ("lost", {"text": "three", "is_done": False, "fault": "restarting"}),
        ("lost", {"text": "three"}),
        ("lost", {"text": "three red", "fault": "restarting"}),
        ("doubled", {"text": "three threeee red"}),
        ("wrong", {"text": "three rod"}),
        ("wrong", {"text": "three red", "tokens": 4}),
    ],
)
def test_anything_else_does_not(verdict: str, heard: dict[str, Any]) -> None:
    result = judged(**heard)
    assert result[verdict] == 1
    assert not is_good(result)


@pytest.mark.parametrize(
    ("kind", "at_s", "passes"),
    [("ingress", 4.0, True), ("target", 4.0, False), ("node", 6.0, False)],
)
def test_only_a_lost_ingress_excuses_a_cut_connection(kind: str, at_s: float, passes: bool) -> None:
    result = judged("three red", reconnects=[5.0], kills=[Kill(kind, at_s, is_alone=True)])
    assert is_good(result) == passes
