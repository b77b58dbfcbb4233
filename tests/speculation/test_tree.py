"""The forest's checks catch every kind of corruption; spreading and cutting keep trees."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smart_serve.speculation.tree import Forest

VOCAB = 9


@st.composite
def forests(draw: st.DrawFn, min_nodes: int = 0) -> Forest:
    sizes = draw(st.lists(st.integers(min_nodes, 7), min_size=1, max_size=4))
    tokens, parents, depths = [], [], []
    for size in sizes:
        own = [0]
        for row in range(size):
            parent = draw(st.integers(0, row))
            own.append(own[parent] + 1)
            parents.append(parent)
            tokens.append(draw(st.integers(0, VOCAB - 1)))
        depths += own[1:]
    ints = [np.asarray(column, np.int64) for column in (tokens, parents, depths)]
    probs = np.asarray([draw(st.floats(0.0, 1.0)) for _ in tokens])
    return Forest(np.cumsum([0, *sizes]), *ints, probs, probs)


@settings(deadline=None)
@given(forest=forests())
def test_sound_forests_pass(forest: Forest) -> None:
    assert forest.problem(VOCAB, forest.num_nodes) is None
    assert Forest.empty(forest.num_trees).problem(VOCAB, 0) is None


COLUMNS = ("token_ids", "parents", "depths", "confidences", "path_probs")


@settings(deadline=None, max_examples=200)
@given(forest=forests(min_nodes=1), data=st.data())
def test_every_kind_of_corruption_is_named(forest: Forest, data: st.DataObject) -> None:
    node = data.draw(st.integers(0, forest.num_nodes - 1))
    tree = int(np.searchsorted(forest.offsets, node, side="right")) - 1
    own_row = node - int(forest.offsets[tree]) + 1
    kind = data.draw(
        st.sampled_from(["too many", "offsets", "length", "token", "parent", "depth", "number"])
    )
    if kind == "too many":
        assert forest.problem(VOCAB, forest.num_nodes - 1) is not None
        return
    if kind == "offsets":
        offsets = forest.offsets.copy()
        place = data.draw(st.integers(0, len(offsets) - 1))
        offsets[place] += data.draw(st.sampled_from([-99, 99]))
        broken = replace(forest, offsets=offsets)
    elif kind == "length":
        name = data.draw(st.sampled_from(COLUMNS))
        broken = replace(forest, **{name: getattr(forest, name)[:-1]})
    elif kind == "number":
        name = data.draw(st.sampled_from(["confidences", "path_probs"]))
        value = data.draw(st.sampled_from([np.nan, np.inf, -0.5, 1.5]))
        broken = _with(forest, name, node, value)
    elif kind == "token":
        value = data.draw(st.sampled_from([-1, VOCAB, 2**40]))
        broken = _with(forest, "token_ids", node, value)
    elif kind == "parent":
        value = data.draw(st.sampled_from([-1, own_row, own_row + 1, 99]))
        broken = _with(forest, "parents", node, value)
    else:
        value = data.draw(st.integers(-1, 9))
        assume(value != forest.depths[node])
        broken = _with(forest, "depths", node, value)
    assert broken.problem(VOCAB, 100) is not None


def _with(forest: Forest, name: str, node: int, value: float) -> Forest:
    column = getattr(forest, name).copy()
    column[node] = value
    return replace(forest, **{name: column})


def trees_of(forest: Forest) -> list[list[tuple[int, int, int]]]:
    """(token, parent, depth) of each tree's nodes."""
    columns = zip(*(getattr(forest, name).tolist() for name in COLUMNS[:3]), strict=True)
    nodes = list(columns)
    ends = forest.offsets.tolist()
    return [nodes[a:b] for a, b in itertools.pairwise(ends)]


@settings(deadline=None)
@given(forest=forests(), data=st.data())
def test_spreading_puts_each_tree_in_its_place(forest: Forest, data: st.DataObject) -> None:
    total = forest.num_trees + data.draw(st.integers(0, 4))
    every = st.permutations(range(total)).map(lambda order: sorted(order[: forest.num_trees]))
    places = data.draw(every)
    spread = trees_of(forest.spread(total, places))
    assert [spread[place] for place in places] == trees_of(forest)
    assert all(not spread[i] for i in range(total) if i not in places)


@settings(deadline=None)
@given(forest=forests(), data=st.data())
def test_cutting_keeps_the_first_nodes_and_sound_trees(forest: Forest, data: st.DataObject) -> None:
    room = data.draw(
        st.lists(st.integers(0, 8), min_size=forest.num_trees, max_size=forest.num_trees)
    )
    cut = forest.cut(room)
    assert cut.problem(VOCAB, 100) is None
    expected = [tree[:n] for tree, n in zip(trees_of(forest), room, strict=True)]
    assert trees_of(cut) == expected


@pytest.mark.parametrize("offsets", [[], [1], [0, 2], [0, -1, 1], [0, 1, 0, 1]])
def test_offsets_that_cover_nothing_right_are_refused(offsets: list[int]) -> None:
    one = np.zeros(1, np.int64)
    forest = Forest(np.asarray(offsets, np.int64), one, one, one + 1, one + 0.5, one + 0.5)
    assert forest.problem(VOCAB, 5) is not None
