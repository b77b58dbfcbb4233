"""The best fixed tree that hindsight could have chosen for a batch size.

A fixed tree is EAGLE-2's with N nodes and D layers, grown by the same drafter in the same engine;
no tree is one of the choices. All of them take part in the same rounds as the policies.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence

from smart_serve.bench.figures import Sample

TREES: tuple[str, ...] = tuple(
    f"eagle2:{nodes}x{depth}"
    for nodes, depth in (
        *((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8), (12, 12)),  # chains
        *((4, 2), (8, 4), (12, 6), (16, 8)),  # two nodes a layer
        *((16, 4), (32, 8), (60, 6)),  # four, four and ten nodes a layer
    )
)
"""Sizes to the factor of 1.5 or 2, and three widths: between two of them speedups differ little."""
ROUNDS_FOR_ALL = 2
HOPELESS = 0.85
"""Of the best tree's median: what is slower after `ROUNDS_FOR_ALL` rounds runs no further. Noise
within a round is a few per cent, so what goes would not have become the best."""


def survivors(trees: Sequence[str], samples: Mapping[str, Sequence[Sample]]) -> list[str]:
    """The trees that are worth another round."""
    rounds = max(len(samples[tree]) for tree in trees)
    if rounds < ROUNDS_FOR_ALL:
        return list(trees)
    running = [tree for tree in trees if len(samples[tree]) == rounds]
    best = max(_median_speedup(samples[tree], samples["off"]) for tree in running)
    return [
        tree
        for tree in running
        if _median_speedup(samples[tree], samples["off"]) >= HOPELESS * best
    ]


def hindsight(trees: Sequence[str], samples: Mapping[str, Sequence[Sample]]) -> list[str]:
    """For each round the fastest in all the others, by the median, of `off` and the trees that ran
    in every round.

    The largest of fifteen medians owes a part of its size to chance; a round that had no say in the
    choice does not flatter it.
    """
    rounds = len(samples["off"])
    choices = ["off", *(tree for tree in trees if len(samples[tree]) == rounds)]

    def without(number: int, name: str) -> float:
        kept = [i for i in range(rounds) if i != number or rounds == 1]
        own, off = samples[name], samples["off"]
        return _median_speedup([own[i] for i in kept], [off[i] for i in kept])

    return [max(choices, key=functools.partial(without, number)) for number in range(rounds)]


def _median_speedup(samples: Sequence[Sample], base: Sequence[Sample]) -> float:
    return statistics.median(
        s.tokens_per_s / b.tokens_per_s for s, b in zip(samples, base, strict=False)
    )
