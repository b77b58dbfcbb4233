"""Rounds are fair, and the oracle is the best fixed tree of the same rounds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from smart_serve.bench.figures import Load, Sample
from smart_serve.bench.oracle import hindsight
from smart_serve.bench.rounds import ORACLE, Contest, shown

TREES = ("eagle2:2x2", "eagle2:8x4", "eagle2:60x6")


class Scripted:
    """Every name has a pace; the machine slows down from run to run."""

    def __init__(self, paces: dict[str, float]) -> None:
        self.paces = paces
        self.runs: list[tuple[str, Load, int]] = []

    def run(self, policy: str, load: Load, first: int) -> Sample:
        self.runs.append((policy, load, first))
        slow_down = 1.0 + 0.0005 * len(self.runs)
        return Sample(tokens=1000, elapsed_s=10.0 * slow_down / self.paces[policy])


def hold(runner: Scripted, contest: Contest, batch: int = 4) -> dict[str, object]:
    rows = contest.hold(runner, contest.load(batch, 0.0), lambda what: None)
    return {row.policy: row for row in rows}


def test_each_round_asks_all_policies_the_same_questions_in_another_order() -> None:
    runner = Scripted({"off": 1.0, "smart": 2.0, "chain:3": 1.5})
    contest = Contest(("off", "smart", "chain:3"), rounds=3)
    rows = hold(runner, contest)
    measured = runner.runs[3:]
    rounds = [measured[i : i + 3] for i in (0, 3, 6)]
    assert len({tuple(name for name, _, _ in runs) for runs in rounds}) == 3
    assert [{first for _, _, first in runs} for runs in rounds] == [{0}, {12}, {24}]
    assert rows["smart"].speedup.median == pytest.approx(2.0, rel=0.01)
    assert rows["off"].speedup.median == 1.0


@pytest.mark.parametrize(("batch", "requests"), [(1, 10), (4, 12), (32, 96)])
def test_the_workload_grows_with_the_batch(batch: int, requests: int) -> None:
    assert Contest(("off",), requests=10).load(batch, 0.0).requests == requests


def test_the_oracle_is_the_best_tree_and_hopeless_ones_are_given_up() -> None:
    paces = {"off": 1.0, "smart": 1.9, "eagle2:2x2": 1.85, "eagle2:8x4": 2.0, "eagle2:60x6": 0.7}
    runner = Scripted(paces)
    rows = hold(runner, Contest(("off", "smart"), TREES, rounds=4))
    assert rows[ORACLE].tree == "eagle2:8x4"
    assert rows[ORACLE].speedup.median == pytest.approx(2.0, rel=0.02)
    assert rows["smart"].of_oracle.median == pytest.approx(0.95, rel=0.02)
    counts = Counter(name for name, load, _ in runner.runs if load.requests == 12)
    # With the warm-up of the policies.
    assert counts == {"off": 5, "smart": 5, "eagle2:2x2": 4, "eagle2:8x4": 4, "eagle2:60x6": 2}


def test_chance_does_not_flatter_the_oracle() -> None:
    """Fourteen trees that are all as fast as `smart`, on a noisy machine."""
    rng = np.random.default_rng(0)
    names = ["off", "smart", *(f"eagle2:{n}x1" for n in range(1, 15))]
    shares, flattered = [], []
    for _ in range(100):
        noise = rng.lognormal(0.0, 0.1, (len(names), 4))
        samples = {
            name: [Sample(tokens=1000, elapsed_s=1.0 / pace) for pace in paces]
            for name, paces in zip(names, noise, strict=True)
        }
        best = hindsight(names[2:], samples)
        rates = [samples[name][i].tokens_per_s for i, name in enumerate(best)]
        shares += [s.tokens_per_s / rate for s, rate in zip(samples["smart"], rates, strict=True)]
        medians = [np.median([s.tokens_per_s for s in samples[name]]) for name in names[2:]]
        flattered.append(np.median([s.tokens_per_s for s in samples["smart"]]) / max(medians))
    assert np.median(shares) == pytest.approx(1.0, abs=0.03)
    # The control: the largest median looks faster than what is as fast.
    assert np.median(flattered) < 0.93


def test_no_tree_may_be_the_best() -> None:
    paces = {"off": 1.0, "smart": 0.99, "eagle2:2x2": 0.9, "eagle2:8x4": 0.8, "eagle2:60x6": 0.3}
    rows = hold(Scripted(paces), Contest(("off", "smart"), TREES, rounds=3))
    assert rows[ORACLE].tree == "off"
    assert rows[ORACLE].speedup.median == 1.0


def test_single_trees_are_written_but_not_shown() -> None:
    paces = dict.fromkeys(("off", *TREES), 1.0)
    contest = Contest(("off",), TREES, rounds=2)
    rows = contest.hold(Scripted(paces), contest.load(1, 0.0), lambda what: None)
    assert {row.policy for row in rows} == {"off", ORACLE, *TREES}
    assert [row.policy for row in shown(rows, contest.policies)] == ["off", ORACLE]
