"""Rounds of all policies, interleaved so that a noisy machine hurts all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec.structs

from smart_serve.bench.figures import Load, Row, Sample, summarise
from smart_serve.bench.oracle import hindsight, survivors

ORACLE = "oracle"
QUESTIONS_PER_PLACE = 3
"""Of the batch, in one run: with fewer the ends, which are not counted, would be most of it."""
WARM_UP_PER_PLACE = 2
"""Questions before the first round for trees that learn nothing; a policy gets a whole run: in
process every one has a controller of its own, which needs some dozen steps to know its drafter."""


class Runner(Protocol):
    """Runs one policy once over part of the workload."""

    def run(self, policy: str, load: Load, first: int) -> Sample: ...


@dataclass(frozen=True, slots=True)
class Contest:
    """Who takes part, and for how long."""

    policies: tuple[str, ...]
    """`off` among them."""
    trees: tuple[str, ...] = ()
    """For the oracle; none: there is none."""
    rounds: int = 5
    requests: int = 6
    """Least questions of one run."""

    def load(self, batch: int, temperature: float) -> Load:
        """A whole number of batches, so that static batches are full, too."""
        places = max(QUESTIONS_PER_PLACE, -(-self.requests // batch))
        return Load(batch, temperature, batch * places)

    def hold(self, runner: Runner, load: Load, told: Callable[[str], None]) -> list[Row]:
        """All rounds of one load; `told` what is under way."""
        names = list(dict.fromkeys((*self.policies, *self.trees)))
        samples: dict[str, list[Sample]] = {name: [] for name in names}
        short = msgspec.structs.replace(load, requests=WARM_UP_PER_PLACE * load.batch)
        for name in names:
            told(f"warm-up, {name}")
            runner.run(name, load if name in self.policies else short, 0)
        trees = list(self.trees)
        for number in range(self.rounds):
            running = [n for n in names if n in self.policies or n in trees]
            # Another order in every round: no policy always runs after the same neighbour.
            shift = number * max(1, len(running) // self.rounds) % len(running)
            for name in running[shift:] + running[:shift]:
                told(f"round {number + 1}/{self.rounds}, {name}")
                samples[name].append(runner.run(name, load, number * load.requests))
            if trees:
                trees = survivors(trees, samples)
        return self._rows(load, samples)

    def _rows(self, load: Load, samples: dict[str, list[Sample]]) -> list[Row]:
        best = hindsight(self.trees, samples) if self.trees else []
        oracle = [samples[name][number] for number, name in enumerate(best)]
        rows = [
            summarise(name, load, of_name, samples["off"], oracle)
            for name, of_name in samples.items()
        ]
        if best:
            row = summarise(ORACLE, load, oracle, samples["off"], oracle)
            row = msgspec.structs.replace(row, tree=statistics.mode(best))
            rows.insert(len(self.policies), row)
        return rows


def shown(rows: Sequence[Row], policies: Sequence[str]) -> list[Row]:
    """Those of the policies and the oracle, without the single trees that it chose from."""
    return [row for row in rows if row.policy in policies or row.policy == ORACLE]
