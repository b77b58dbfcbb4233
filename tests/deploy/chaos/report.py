"""What became of the answers: lost, doubled, or whole, and how long they fell silent."""

from __future__ import annotations

import bisect
import datetime
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from tests.deploy.chaos.clients import Heard
from tests.deploy.chaos.faults import Kill

AFTER_S = 5.0
"""A silence that begins within this of a kill is put down to it."""
WORST = 40
CUTTERS = ("ingress", "node")
"""Kills that may cut a client's connection: an ingress dies, or stood on the node that is lost."""
DETECTION_S = 15.0
"""How much later a cut may be noticed: nodes are found lost by their silence."""


def report(
    heard: Sequence[Heard], expected: Sequence[Heard], kills: Sequence[Kill]
) -> dict[str, Any]:
    """`expected`: the fault-free answers, by number."""
    verdicts = Counter(_verdict(one, expected[one.number]) for one in heard)
    cuts = [kill.at_s for kill in kills if kill.kind in CUTTERS]
    cut_at = [at for one in heard for at in one.reconnects]
    return {
        "requests": len(heard),
        "tokens": sum(one.completion_tokens for one in heard),
        **{name: verdicts[name] for name in ("whole", "lost", "doubled", "wrong")},
        "faults": dict(Counter(one.fault for one in heard if one.fault is not None)),
        "connections_cut": len(cut_at),
        "cut_without_reason": sum(not _is_soon_after(at, cuts, DETECTION_S) for at in cut_at),
        "kills": dict(Counter(kill.kind for kill in kills)),
        "silence_s": _silences(heard, kills),
        "longest_silences": _longest(heard, kills),
        "silence_without_faults_s": _spread([gap for one in expected for _, gap in _gaps(one)]),
    }


def is_good(result: dict[str, Any]) -> bool:
    bad = result["lost"] + result["doubled"] + result["wrong"] + result["cut_without_reason"]
    return result["requests"] > 0 and bad == 0 and result["mends"]


def _verdict(one: Heard, should_be: Heard) -> str:
    if one.fault is None and one.is_done and one.text == should_be.text:
        return "whole" if one.completion_tokens == should_be.completion_tokens else "wrong"
    if should_be.text.startswith(one.text):
        return "lost"
    return "doubled" if len(one.text) > len(should_be.text) else "wrong"


def _silences(heard: Sequence[Heard], kills: Sequence[Kill]) -> dict[str, Any]:
    """The longest silence of each stream that was there when something was killed: by kind, of
    the kills that came alone."""
    found: dict[str, list[float]] = defaultdict(list)
    for kill in kills:
        for one in heard:
            if one.times_s[0] <= kill.at_s <= one.times_s[-1]:
                gaps = [
                    gap
                    for at, gap in _gaps(one)
                    if at <= kill.at_s + AFTER_S and at + gap >= kill.at_s
                ]
                found[kill.kind if kill.is_alone else "together"].append(max(gaps))
    return {kind: _spread(gaps) for kind, gaps in sorted(found.items())}


def _longest(heard: Sequence[Heard], kills: Sequence[Kill]) -> list[dict[str, Any]]:
    """With what was killed last before each ended, and how long before it began (minus: after)."""
    worst = sorted(((gap, at) for one in heard for at, gap in _gaps(one)), reverse=True)[:WORST]
    told = []
    for gap, at in worst:
        last = max((kill for kill in kills if kill.at_s < at + gap), key=_time, default=None)
        if last is not None:
            before = round(at - last.at_s, 1)
            row = {"s": round(gap, 2), "kind": last.kind, "kill_before_s": before}
            told.append({**row, "alone": last.is_alone, "began": _clock(at)})
    return told


def _clock(at_s: float) -> str:
    """The wall clock's time of a `time.monotonic`, for a look into the logs."""
    wall = datetime.datetime.fromtimestamp(time.time() - time.monotonic() + at_s)
    return wall.strftime("%H:%M:%S")


def _time(kill: Kill) -> float:
    return kill.at_s


def _gaps(one: Heard) -> list[tuple[float, float]]:
    """(beginning, length) of each silence."""
    pairs = zip(one.times_s, one.times_s[1:], strict=False)
    return [(before, after - before) for before, after in pairs]


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"count": 0}
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

    return {"count": len(ordered), "p50": at(0.5), "p99": at(0.99), "max": at(1.0)}


def _is_soon_after(at_s: float, causes: Sequence[float], within_s: float) -> bool:
    ordered = sorted(causes)
    index = bisect.bisect_right(ordered, at_s)
    return index > 0 and at_s - ordered[index - 1] <= within_s
