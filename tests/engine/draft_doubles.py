"""Drafters for tests: ones that know the answer, and ones that talk nonsense."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from smart_serve.drafters.protocol import DraftBatch, DrafterInfo, Proposal
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.tree import Forest

Node = tuple[int, int]
"""(token, row of the parent)"""
Shape = Callable[[list[int], int], list[Node]]
"""From the right continuation after the root, and the nodes allowed, to a tree."""


class KnowingDrafter:
    """Is told each sequence's whole text and draws trees around it; checks what it is sent."""

    def __init__(self, shape: Shape) -> None:
        self.info = DrafterInfo("knowing", "hidden", 32, (), Curve((1.0,), (0.001,)))
        self.texts: dict[int, list[int]] = {}
        self.held: dict[int, int] = {}
        self.shape = shape

    def propose(self, batch: DraftBatch) -> Proposal:
        trees = []
        room = batch.growth.max_nodes // len(batch.inputs)
        for item in batch.inputs:
            known = 0 if item.start == 0 else self.held[item.sequence_id]
            assert known == item.start
            end = item.start + len(item.token_ids)
            text = self.texts[item.sequence_id]
            assert item.token_ids.tolist() == text[item.start + 1 : end + 1]
            assert item.vectors is not None
            assert len(item.vectors) == len(item.token_ids)
            self.held[item.sequence_id] = end
            trees.append(self.shape(text[end + 1 :], room))
        return Proposal(Growth(forest_of(trees), ((0.9, 0.0, 0.0, 0.0),), (0.9,)))

    def close(self, sequence_ids: Sequence[int]) -> None:
        for sequence_id in sequence_ids:
            self.held.pop(sequence_id, None)


def forest_of(trees: Sequence[Sequence[Node]]) -> Forest:
    depths: list[int] = []
    for tree in trees:
        mine = [0]
        for _, parent in tree:
            mine.append(mine[parent] + 1)
        depths.extend(mine[1:])
    nodes = [node for tree in trees for node in tree]
    return Forest(
        offsets=np.cumsum([0, *(len(tree) for tree in trees)]),
        token_ids=np.asarray([token for token, _ in nodes], np.int64),
        parents=np.asarray([parent for _, parent in nodes], np.int64),
        depths=np.asarray(depths, np.int64),
        confidences=np.full(len(nodes), 0.5),
        path_probs=np.full(len(nodes), 0.5),
    )


def chain(depth: int) -> Shape:
    """Exactly the right tokens."""
    return lambda right, room: [(token, row) for row, token in enumerate(right[: min(depth, room)])]


def thicket(rng: np.random.Generator, vocab: int, max_nodes: int = 12) -> Shape:
    """Right and wrong tokens in random places, so that accepted rows lie apart."""

    def shape(right: list[int], room: int) -> list[Node]:
        tree: list[Node] = []
        on_path = {0: 0}  # row -> depth, while all tokens down to it are right
        for _ in range(int(rng.integers(0, min(max_nodes, room) + 1))):
            parent = int(rng.choice(list(on_path))) if rng.random() < 0.7 else 0
            if rng.random() < 0.2 and tree:
                parent = int(rng.integers(0, len(tree) + 1))
            depth = on_path.get(parent)
            hits = depth is not None and depth < len(right) and rng.random() < 0.6
            token = right[depth] if hits else int(rng.integers(0, vocab))
            tree.append((token, parent))
            if depth is not None and depth < len(right) and token == right[depth]:
                on_path[len(tree)] = depth + 1
        return tree

    return shape


class LyingDrafter:
    """Takes an honest drafter's answer and spoils it."""

    def __init__(self, honest: KnowingDrafter, spoil: Callable[[Proposal], Proposal]) -> None:
        self.honest = honest
        self.info = honest.info
        self.spoil = spoil
        self.asked = 0

    def propose(self, batch: DraftBatch) -> Proposal:
        self.asked += 1
        return self.spoil(self.honest.propose(batch))

    def close(self, sequence_ids: Sequence[int]) -> None:
        self.honest.close(sequence_ids)
