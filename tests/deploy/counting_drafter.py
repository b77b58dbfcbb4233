"""A tiny real drafter for the tests of the channel: its trees are a function of the history."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from smart_serve.drafters.protocol import (
    DraftBatch,
    DrafterInfo,
    DrafterUnavailable,
    Outcome,
    Proposal,
    VectorKind,
    one_by_one,
)
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.tree import Forest


class CountingDrafter:
    """Two chains below the root whose tokens are sums over the committed tokens and vectors."""

    def __init__(self, vectors: VectorKind = "hidden") -> None:
        size = None if vectors == "none" else 4
        layers = (0, 1, 2) if vectors == "layers" else ()
        cost = Curve((1.0, 8.0), (0.5, 1.5))
        self.info = DrafterInfo("counting", vectors, size, layers, cost)
        self.vocab = 97
        self.held: dict[int, list[float]] = {}
        self.delay_s = 0.0
        self.failure: Exception | None = None

    def propose(self, batch: DraftBatch) -> Proposal:
        time.sleep(self.delay_s)
        if self.failure is not None:
            raise self.failure
        offsets, columns, unknown = [0], [], []
        for index, one in enumerate(batch.inputs):
            held = self.held.setdefault(one.sequence_id, [])
            if len(held) < one.start:
                unknown.append(index)
                offsets.append(offsets[-1])
                continue
            del held[one.start :]
            uses = self.info.vectors != "none" and one.vectors is not None
            sums = one.token_ids.astype(np.float64)
            if uses:
                sums[: len(one.vectors)] += one.vectors.double().sum(1).numpy()
            held.extend(sums.tolist())
            seed = int(abs(sum(held)) * 8) % self.vocab
            depth = min(batch.growth.max_depth, 1 + seed % 4)
            for branch in range(2):
                for d in range(depth):
                    parent = 0 if d == 0 else branch * depth + d
                    token = (seed * (branch + 3) + d) % self.vocab
                    columns.append((token, parent, d + 1, 0.5, 0.5 ** (d + 1)))
            offsets.append(offsets[-1] + 2 * depth)
        rows = np.array(columns, np.float64).reshape(-1, 5)
        ints = rows[:, :3].astype(np.int64)
        forest = Forest(
            np.array(offsets), ints[:, 0], ints[:, 1], ints[:, 2], rows[:, 3], rows[:, 4]
        )
        growth = Growth(forest, ((0.5, 0.5), (0.25,)), (0.5, 0.25))
        return Proposal(growth, tuple(unknown), (0.25, 0.125), (len(batch.inputs), 2))

    def propose_together(self, batches: Sequence[DraftBatch]) -> Iterator[tuple[int, Outcome]]:
        return one_by_one(self, batches)

    def close(self, sequence_ids: Sequence[int]) -> None:
        for one in sequence_ids:
            self.held.pop(one, None)


def refuse() -> DrafterUnavailable:
    return DrafterUnavailable("the drafter is full")
