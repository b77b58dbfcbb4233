"""EAGLE-2 against a straightforward reference of its section 4."""

from __future__ import annotations

import pytest
from growing import Children, grow, plan_of, random_children
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_serve.config import SpeculationConfig, is_policy
from smart_serve.speculation.bounds import bounds_of

Path = tuple[int, ...]


def reference(children: Children, tree: int, depth: int, top_k: int, nodes: int) -> set[Path]:
    """Paths of one tree: expand the top_k by product in each layer, re-rank all at the end."""
    layer: list[tuple[float, Path]] = [(1.0, ())]
    everything: list[tuple[float, Path]] = []
    for _ in range(depth):
        below = [
            (product * float(p), (*path, token))
            for product, path in layer
            for token, p in enumerate(children(tree, path))
        ]
        everything += below
        layer = sorted(below, key=lambda node: -node[0])[:top_k]
    return {path for _, path in sorted(everything, key=lambda node: -node[0])[:nodes]}


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    num_trees=st.integers(1, 4),
    depth=st.integers(1, 5),
    top_k=st.integers(1, 4),
    nodes=st.integers(1, 30),
)
def test_trees_equal_the_reference(
    seed: int, num_trees: int, depth: int, top_k: int, nodes: int
) -> None:
    children = random_children(seed, top_k)
    # Costs and calibration must not matter to it: absurd ones are given.
    plan = plan_of(
        "eagle2", max_depth=depth, top_k=top_k, nodes_per_tree=nodes, max_nodes=nodes * num_trees,
        verify_knot_ms=(1.0, 1e9), calibration=((0.0, 0.01),) * 8,
    )  # fmt: skip
    forest = grow(plan, num_trees, children).finish().forest
    assert forest.problem(top_k, plan.max_nodes) is None
    for tree in range(num_trees):
        begin, end = int(forest.offsets[tree]), int(forest.offsets[tree + 1])
        paths: list[Path] = [()]
        for node in range(begin, end):
            parent = paths[int(forest.parents[node])]
            paths.append((*parent, int(forest.token_ids[node])))
        assert set(paths[1:]) == reference(children, tree, depth, top_k, nodes)


@pytest.mark.parametrize(
    ("policy", "size"),
    [("eagle2:60x6", (60, 6, 10)), ("eagle2:4x4", (4, 4, 1)), ("eagle2:9x2", (9, 2, 5))],
)
def test_a_size_in_the_name_bounds_the_tree(policy: str, size: tuple[int, int, int]) -> None:
    config = SpeculationConfig(policy=policy)
    bounds = bounds_of(policy, config, (), 3, None)
    assert (bounds.nodes_per_tree, bounds.max_depth, bounds.top_k) == size
    plan = plan_of(policy, nodes_per_tree=size[0], max_depth=size[1], top_k=size[2], max_nodes=200)
    forest = grow(plan, 3, random_children(0, size[2])).finish().forest
    assert forest.sizes.tolist() == [size[0]] * 3
    assert forest.depths.max() <= size[1]


@pytest.mark.parametrize(
    "name", ["eagle2:0x1", "eagle2:4", "eagle2:100x4", "eagle2:4x17", "eagle2:"]
)
def test_a_size_beyond_reason_is_refused(name: str) -> None:
    assert not is_policy(name)


def test_ties_keep_the_tree_closed() -> None:
    """A certain child has its parent's product; the parent must still be there."""
    plan = plan_of("eagle2", nodes_per_tree=2, max_depth=4, top_k=3)
    certain = random_children(0, 3)
    forest = grow(plan, 1, lambda tree, path: certain(tree, path) * 0 + [1.0, 0.0, 0.0])
    assert forest.finish().forest.problem(3, 64) is None
