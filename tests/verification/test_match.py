"""Sample-and-match emits what plain decoding with the same uniforms emits, whatever the tree.

The target here is a random law over a small vocabulary for each context, so contexts can be
followed exactly and no model is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_serve.speculation.tree import Forest
from smart_serve.verification.match import match

VOCAB = 4


@dataclass(frozen=True)
class Target:
    """p(. | context) by hashing the context; uniforms by absolute position."""

    seed: int

    def draw(self, context: tuple[int, ...], shift: int = 0) -> int:
        """The token that follows `context`, by the uniform of its own position."""
        rng = np.random.default_rng([self.seed, len(context), *context])
        probs = rng.dirichlet(np.full(VOCAB, 0.5))
        uniform = np.random.default_rng([self.seed + 1, len(context) + shift]).random()
        return int(min(np.searchsorted(np.cumsum(probs), uniform, side="right"), VOCAB - 1))

    def decode(self, context: tuple[int, ...], count: int) -> list[int]:
        text = list(context)
        for _ in range(count):
            text.append(self.draw(tuple(text)))
        return text[len(context) :]


@st.composite
def forests(draw: st.DrawFn) -> list[list[tuple[int, int]]]:
    """Trees as (token, parent row) lists: any shape, duplicate siblings too, empty ones too."""
    trees = []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.integers(0, 12))
        trees.append(
            [
                (draw(st.integers(0, VOCAB - 1)), draw(st.integers(0, row)))
                for row in range(size)
            ]
        )  # fmt: skip
    return trees


def build(trees: list[list[tuple[int, int]]]) -> Forest:
    depths: list[int] = []
    for tree in trees:
        own = [0]
        for _, parent in tree:
            own.append(own[parent] + 1)
        depths += own[1:]
    nodes = [node for tree in trees for node in tree]
    ones = np.ones(len(nodes))
    return Forest(
        np.cumsum([0, *map(len, trees)]),
        np.asarray([token for token, _ in nodes], np.int64),
        np.asarray([parent for _, parent in nodes], np.int64),
        np.asarray(depths, np.int64),
        ones,
        ones,
    )


def paths(tree: list[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Tokens from the root's child down to each row; the root's own is empty."""
    found: list[tuple[int, ...]] = [()]
    for token, parent in tree:
        found.append((*found[parent], token))
    return found


def emit(
    target: Target, context: tuple[int, ...], trees: list[list[tuple[int, int]]], index: int,
    shift: int = 0,
) -> tuple[list[int], list[int]]:  # fmt: skip
    """(accepted rows, emitted tokens) of one step; `shift` plants a wrong position of uniforms
    below the root."""
    drawn = [
        target.draw((*context, *path), shift if path else 0)
        for tree in trees
        for path in paths(tree)
    ]
    walk = match(build(trees), torch.tensor(drawn))
    rows = walk.paths[index, : walk.lengths[index]].tolist()
    return rows, [*(trees[index][row - 1][0] for row in rows), int(walk.bonus[index])]


@settings(deadline=None, max_examples=200)
@given(trees=forests(), seed=st.integers(0, 2**20), context=st.lists(st.integers(0, 3), max_size=3))
def test_a_step_emits_what_plain_decoding_emits(
    trees: list[list[tuple[int, int]]], seed: int, context: list[int]
) -> None:
    target, text = Target(seed), tuple(context)
    for index, tree in enumerate(trees):
        rows, tokens = emit(target, text, trees, index)
        assert tokens == target.decode(text, len(tokens))
        # Accepted rows are one path down from the root, and it could not have gone further.
        assert [tree[row - 1][1] for row in rows] == [0, *rows][: len(rows)]
        last = rows[-1] if rows else 0
        assert (tokens[-1], last) not in tree


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**20), data=st.data())
def test_many_steps_emit_what_plain_decoding_emits(seed: int, data: st.DataObject) -> None:
    target, text = Target(seed), [0]
    while len(text) < 12:
        trees = data.draw(forests())
        text += emit(target, tuple(text), trees, 0)[1]
    assert text[1:] == target.decode((0,), len(text) - 1)


def full_tree(depth: int) -> list[tuple[int, int]]:
    tree: list[tuple[int, int]] = []
    level = [0]
    for _ in range(depth):
        below = []
        for parent in level:
            for token in range(VOCAB):
                tree.append((token, parent))
                below.append(len(tree))
        level = below
    return tree


def disagreements(shift: int) -> int:
    wrong = 0
    for seed in range(60):
        target, trees = Target(seed), [full_tree(2)]
        tokens = emit(target, (1, 2), trees, 0, shift)[1]
        assert len(tokens) == 3
        wrong += tokens != target.decode((1, 2), 3)
    return wrong


def test_a_uniform_one_position_off_changes_answers() -> None:
    """The control: a full tree accepts to its leaves; only the right position gives the text."""
    assert disagreements(0) == 0
    assert disagreements(1) > 10
    assert disagreements(-1) > 10


def test_empty_trees_give_the_roots_tokens() -> None:
    walk = match(Forest.empty(2), torch.tensor([4, 3]))
    assert walk.paths.shape == (2, 0)
    assert walk.lengths.tolist() == [0, 0]
    assert walk.bonus.tolist() == [4, 3]
