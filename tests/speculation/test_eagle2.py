"""EAGLE-2 against a straightforward reference of its section 4."""

from __future__ import annotations

from growing import Children, grow, plan_of, random_children
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_ties_keep_the_tree_closed() -> None:
    """A certain child has its parent's product; the parent must still be there."""
    plan = plan_of("eagle2", nodes_per_tree=2, max_depth=4, top_k=3)
    certain = random_children(0, 3)
    forest = grow(plan, 1, lambda tree, path: certain(tree, path) * 0 + [1.0, 0.0, 0.0])
    assert forest.finish().forest.problem(3, 64) is None
