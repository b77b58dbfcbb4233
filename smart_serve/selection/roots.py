"""What became of random trees at many roots: the data that a selector is trained on.

The engine serves questions as it always does, but every tree has a random shape. How many of its
tokens were accepted by the rule in use is then an unbiased, if noisy, sample of what that shape is
worth at that root; traversal, whose branching probabilities have no closed form, is no exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec.structs
import numpy as np
from numpy.typing import NDArray

from smart_serve.bench.prepared import Work
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.drafters.protocol import DraftBatch, DrafterInfo, Proposal
from smart_serve.engine.engine import Engine
from smart_serve.messages import SamplingParams
from smart_serve.speculation.selector import FEATURES, all_actions
from smart_serve.speculation.tree import FloatArray, IntArray

SETTINGS = ((1.0, 1.0), (0.7, 1.0), (1.0, 0.9), (1.3, 1.0))
"""Temperature and top-p, request by request."""


@dataclass(frozen=True)
class Roots:
    """N roots, one tree each."""

    features: FloatArray  # [N, F]
    shapes: IntArray  # [N, 3] (K, L1, L2)
    accepted: IntArray  # [N]

    @staticmethod
    def of(parts: Sequence[Roots]) -> Roots:
        columns = zip(*((p.features, p.shapes, p.accepted) for p in parts), strict=True)
        return Roots(*(np.concatenate(column) for column in columns))

    def only(self, kept: NDArray[np.bool_] | IntArray) -> Roots:
        return Roots(self.features[kept], self.shapes[kept], self.accepted[kept])


class Explorer:
    """Shapes at random, every action as often as any other."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._actions = np.asarray(all_actions())
        self.features, self.shapes = np.empty((0, len(FEATURES))), np.empty((0, 3), np.int64)

    def choose(self, features: FloatArray) -> IntArray:
        self.features = features
        self.shapes = self._actions[self._rng.integers(0, len(self._actions), len(features))]
        return self.shapes


class ExploringDrafter:
    """Another drafter, with an explorer for its selector; tells whose trees it explored."""

    def __init__(self, drafter: NetworkDrafter, explorer: Explorer) -> None:
        self._drafter = drafter
        self._drafter.selector = explorer
        self.sequence_ids: list[int] = []

    @property
    def info(self) -> DrafterInfo:
        return self._drafter.info

    def propose(self, batch: DraftBatch) -> Proposal:
        proposal = self._drafter.propose(batch)
        known = enumerate(batch.inputs)
        self.sequence_ids = [x.sequence_id for i, x in known if i not in proposal.unknown]
        return proposal

    def close(self, sequence_ids: Sequence[int]) -> None:
        self._drafter.close(sequence_ids)


def collect(
    engine: Engine,
    drafter: NetworkDrafter,
    work: Sequence[Work],
    rule: str,
    *,
    count: int,
    batch: int,
    seed: int,
    told: Callable[[int, int], None],
) -> Roots:
    """At least `count` roots of the requests `work`, over and over, `batch` at a time."""
    explorer = Explorer(seed)
    exploring = ExploringDrafter(drafter, explorer)
    engine.set_drafter(exploring)
    requests = _requests(work, rule, seed)
    parts: list[Roots] = []
    running = done = 0
    while done < count:
        while running < batch:
            engine.add(*next(requests))
            running += 1
        exploring.sequence_ids = []
        emissions = engine.step()
        accepted = {e.sequence.id: e.num_accepted for e in emissions if e.chunk is not None}
        cut_short = {e.sequence.id for e in emissions if e.sequence.finish_reason == "length"}
        running -= sum(emission.sequence.finish_reason is not None for emission in emissions)
        ids = exploring.sequence_ids
        counts = np.asarray([accepted.get(i, 0) for i in ids], np.int64)
        whole = np.asarray([i in accepted and i not in cut_short for i in ids], np.bool_)
        if len(ids) == len(explorer.features):
            step = Roots(explorer.features, explorer.shapes, counts)
            parts.append(step.only(whole & np.isfinite(explorer.features.sum(axis=1))))
            done += len(parts[-1].accepted)
        told(min(done, count), count)
    for sequence in [*engine.scheduler.running, *engine.scheduler.waiting]:
        engine.abort(sequence)
    return Roots.of(parts)


def _requests(work: Sequence[Work], rule: str, seed: int) -> Iterator[Work]:
    number = 0
    while True:
        request, features = work[number % len(work)]
        temperature, top_p = SETTINGS[number % len(SETTINGS)]
        sampling = SamplingParams(
            max_tokens=request.sampling.max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed + number,
            policy="selector",
            verification=rule,
        )
        yield msgspec.structs.replace(request, request_id=f"{number}", sampling=sampling), features
        number += 1
