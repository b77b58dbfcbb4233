"""The rows of a step as arrays over its batch, against trees that are walked node by node."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from dense_rows import dense_rows, seen_by
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_serve.engine.packing import ancestors, tree_rows
from smart_serve.paging.padded import _mask
from smart_serve.paging.rows import Rows, causal_rows, joined
from smart_serve.speculation.tree import Forest

BLOCK_TOKENS = 4
PARENTS = st.lists(st.floats(0, 1, exclude_max=True), max_size=90)
"""Of a tree's nodes, as a share of those that come before."""
TREES = st.lists(st.tuples(st.integers(0, 30), PARENTS), min_size=1, max_size=5)
"""Of sequences: committed tokens, tree."""


def forest_of(all_parents: list[list[int]]) -> Forest:
    depths = []
    for parents in all_parents:
        own = [0]
        for parent in parents:
            own.append(own[parent] + 1)
        depths += own[1:]
    sizes = [len(parents) for parents in all_parents]
    flat = np.array([parent for parents in all_parents for parent in parents], np.int64)
    ones = np.ones(len(flat))
    return Forest(
        offsets=np.concatenate(([0], np.cumsum(sizes))),
        token_ids=100 + np.arange(len(flat)),
        parents=flat,
        depths=np.array(depths, np.int64),
        confidences=ones,
        path_probs=ones,
    )


def one_by_one(contexts: list[int], all_parents: list[list[int]], forest: Forest) -> list[Rows]:
    """The same, a sequence at a time and from dense masks."""
    rows, first_block = [], 1
    for i, (context, parents) in enumerate(zip(contexts, all_parents, strict=True)):
        nodes = slice(int(forest.offsets[i]), int(forest.offsets[i + 1]))
        token_ids = np.concatenate(([i], forest.token_ids[nodes]))
        depths = np.concatenate(([0], forest.depths[nodes]))
        num_blocks = -(-(context + len(token_ids)) // BLOCK_TOKENS)
        blocks = list(range(first_block, first_block + num_blocks))
        first_block += num_blocks
        visible = ancestors(np.array(parents, np.int64))
        rows.append(dense_rows(blocks, context, token_ids, context + depths, visible))
    return rows


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_a_batch_of_trees_is_its_trees_one_by_one(trees: list[tuple[int, list[float]]]) -> None:
    contexts = [context for context, _ in trees]
    all_parents = [
        [int(share * (node + 1)) for node, share in enumerate(shares)] for _, shares in trees
    ]
    forest = forest_of(all_parents)
    each = one_by_one(contexts, all_parents, forest)
    sequences = [
        SimpleNamespace(num_computed=context, tokens=[i], blocks=rows.blocks[0], rope=None)
        for i, (context, rows) in enumerate(zip(contexts, each, strict=True))
    ]
    got, expected = tree_rows(sequences, forest), joined(each)
    for name in ("first_rows", "num_committed", "num_slots", "token_ids", "positions"):
        assert np.array_equal(getattr(got, name), getattr(expected, name)), name
    assert np.array_equal(seen_by(got), seen_by(expected))
    slots = [r.slots(r.tables(BLOCK_TOKENS), BLOCK_TOKENS) for r in (got, expected)]
    assert np.array_equal(*slots)
    place = 0
    for rows in each:
        n = len(rows.token_ids)
        own = rows.blocks[0]
        positions = int(rows.num_committed[0]) + np.arange(n)
        expected_slots = np.array(own)[positions // BLOCK_TOKENS] * BLOCK_TOKENS
        assert slots[0][place : place + n].tolist() == (
            (expected_slots + positions % BLOCK_TOKENS).tolist()
        )
        place += n


def test_dense_masks_say_what_the_bits_do() -> None:
    """Of trees beside a causal stretch, each padded to the longest."""
    all_parents = [[0, 1, 1], [], [0, 0, 1, 3, 2]]
    forest = forest_of(all_parents)
    trees = one_by_one([3, 9, 0], all_parents, forest)
    stretch = causal_rows([[40, 41]], np.array([2]), np.array([4]), np.zeros(4, np.int64))
    rows = joined([*trees, stretch])
    firsts, lengths = rows.first_rows[:-1, None], rows.lengths[:, None]
    padded = firsts + np.minimum(np.arange(int(lengths.max())), lengths - 1)
    num_keys = int(rows.num_slots.max()) + 2
    seen = np.isfinite(_mask(rows, padded, num_keys)[:, 0])
    assert not seen[..., -2:].any()
    assert np.array_equal(seen[..., :-2], seen_by(rows)[padded])
    # The control: who is asked for matters.
    assert not np.array_equal(seen[..., :-2], seen_by(rows)[padded[::-1]])
