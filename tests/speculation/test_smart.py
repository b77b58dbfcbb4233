"""SMART: the verified set is the best there is, and layers open only where they pay."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
from growing import grow, parents_of, plan_of, random_children, steady
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_serve.speculation.cost import Curve
from smart_serve.speculation.growth import TreeGrower
from smart_serve.speculation.smart import SmartGrower

staircases = st.lists(st.floats(0.0, 6.0), min_size=4, max_size=4)
"""Rises of the verify cost at 1, 2, 4 and 7 nodes, after 4 ms for none."""


def staircase_plan(rises: list[float], **changes: object) -> object:
    knots, costs, cost = [0], [4.0], 4.0
    for at, rise in zip((1, 2, 4, 7), rises, strict=True):
        knots += [at - 1, at] if at - 1 > knots[-1] else [at]
        costs += [cost, cost + rise] if len(knots) > len(costs) + 1 else [cost + rise]
        cost += rise
    return plan_of(verify_knots=tuple(knots), verify_knot_ms=tuple(costs), **changes)


def rate(grower: SmartGrower, chosen: tuple[int, ...]) -> float:
    """Expected tokens over the cost of the step, from the definition."""
    probs = grower.column("path_probs")
    tokens = grower.num_trees + sum(probs[i] for i in chosen)
    verify = grower.plan.verify_ms(len(chosen))[-1]
    return float(tokens / (grower._spent_ms + verify))


def closed_subsets(grower: TreeGrower, limit: int) -> list[tuple[int, ...]]:
    parents = parents_of(grower)
    everything = range(len(parents))
    return [
        chosen
        for size in range(min(limit, len(parents)) + 1)
        for chosen in itertools.combinations(everything, size)
        if all(parents[i] is None or parents[i] in chosen for i in chosen)
    ]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    num_trees=st.integers(1, 2),
    rises=staircases,
    max_nodes=st.sampled_from([3, 20]),
)
def test_the_verified_set_is_the_best_of_all(
    seed: int, num_trees: int, rises: list[float], max_nodes: int
) -> None:
    plan = staircase_plan(rises, max_depth=3, top_k=2, max_nodes=max_nodes)
    grower = grow(plan, num_trees, random_children(seed, 2))
    if grower.num_candidates > 12:
        return  # too many subsets to try; other examples cover it
    best = max(rate(grower, chosen) for chosen in closed_subsets(grower, max_nodes))
    assert rate(grower, tuple(grower.choose().tolist())) >= best - 1e-12


def first_local_maximum(grower: SmartGrower) -> tuple[int, ...]:
    order = np.argsort(-grower.column("path_probs"), kind="stable").tolist()
    size = 0
    while size < len(order) and rate(grower, tuple(order[: size + 1])) > rate(
        grower, tuple(order[:size])
    ):
        size += 1
    return tuple(order[:size])


def even_split(grower: SmartGrower) -> tuple[int, ...]:
    """The best choice with equally many nodes for each tree."""
    probs, trees = grower.column("path_probs"), grower.column("trees")
    options = []
    for each in range(9):
        order = np.argsort(-probs, kind="stable")
        chosen = [i for t in range(grower.num_trees) for i in order[trees[order] == t][:each]]
        options.append(tuple(chosen))
    return max(options, key=lambda chosen: rate(grower, chosen))


def test_a_local_scan_and_an_even_split_are_worse_somewhere() -> None:
    """The control: the comparison tells weaker rules from the best one."""
    plan = staircase_plan([1.0, 2.0, 0.0, 2.0], max_depth=3, top_k=2, max_nodes=20)
    local, even = 0, 0
    for seed in range(40):
        grower = grow(plan, 2, random_children(seed, 2))
        best = rate(grower, tuple(grower.choose().tolist()))
        local += rate(grower, first_local_maximum(grower)) < best - 1e-9
        even += rate(grower, even_split(grower)) < best - 1e-9
    assert local > 3
    assert even > 10


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), num_trees=st.integers(1, 6), sharpness=st.floats(0.05, 2.0))
def test_the_forest_is_well_formed_and_closed_under_parents(
    seed: int, num_trees: int, sharpness: float
) -> None:
    grower = grow(plan_of(), num_trees, random_children(seed, 3, sharpness))
    chosen, parents = set(grower.choose().tolist()), parents_of(grower)
    assert all(parents[i] is None or parents[i] in chosen for i in chosen)
    forest = grower.finish().forest
    assert forest.problem(3, grower.plan.max_nodes) is None
    assert forest.num_nodes == len(chosen)
    assert sorted(forest.path_probs) == sorted(grower.column("path_probs")[list(chosen)])


def test_when_verifying_is_dear_nothing_is_verified_or_expanded() -> None:
    plan = plan_of(verify_knot_ms=(10.0, 10_000.0))
    grower = grow(plan, 3, steady(0.9, 0.9, 0.9))
    assert grower.finish().forest.num_nodes == 0
    assert len(grower.layers) == 1


def test_a_dear_draft_layer_closes_layers() -> None:
    """The entry fee: each layer's whole pass is paid before any node of it is known."""
    depths = [
        len(grow(plan_of(draft_layer=Curve((1.0,), (fee,))), 1, steady(0.9)).layers)
        for fee in (0.1, 2.0, 8.0, 1_000.0)
    ]
    assert depths == sorted(depths, reverse=True)
    assert depths[0] == 4
    assert depths[-1] == 1


def test_the_budget_goes_to_the_confident_sequence() -> None:
    plan = plan_of(verify_knot_ms=(10.0, 110.0))
    sizes = grow(plan, 3, steady(0.95, 0.5, 0.2)).finish().forest.sizes
    assert sizes[0] > sizes[1] >= sizes[2]


def test_the_node_budget_of_the_step_holds() -> None:
    for max_nodes in (1, 2, 5, 17):
        plan = plan_of(max_nodes=max_nodes, verify_knots=(0, max_nodes), verify_knot_ms=(10, 10.1))
        forest = grow(plan, 4, random_children(1, 3)).finish().forest
        assert 0 < forest.num_nodes <= max_nodes


def test_a_token_that_ends_the_answer_is_verified_and_never_expanded() -> None:
    plan = plan_of(terminal_tokens=(0,))
    grower = grow(plan, 1, steady(0.9))
    assert len(grower.layers) == 1 or 0 not in _expanded_tokens(grower)
    assert 0 in grower.finish().forest.token_ids
    # The control: without it, the same token is expanded.
    assert 0 in _expanded_tokens(grow(plan_of(), 1, steady(0.9)))


def _expanded_tokens(grower: TreeGrower) -> set[int]:
    tokens = grower.column("token_ids")
    return {int(tokens[parent]) for parent in parents_of(grower) if parent is not None}


def test_a_probe_verifies_a_node_per_tree_though_it_does_not_pay() -> None:
    plan = plan_of(verify_knot_ms=(10.0, 10_000.0))
    probe = msgspec.structs.replace(plan, is_probe=True)
    assert grow(plan, 3, steady(0.5, 0.5, 0.5)).finish().forest.num_nodes == 0
    assert grow(probe, 3, steady(0.5, 0.5, 0.5)).finish().forest.num_nodes == 3
