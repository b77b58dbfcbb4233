"""Each ablation lacks the part that it is named for, and `smart` has it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from growing import grow, parents_of, plan_of, random_children, steady
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_serve.config import ABLATIONS, Ablation, SpeculationConfig
from smart_serve.speculation.controller import TRIALS, SpeculationController
from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.growth import TreeGrower

STEEP = CostTable((1,), (64,), ((Curve((1.0, 512.0), (1.0, 512.0)),),))
"""Every row costs as much as a step: drafting never pays."""
FLAT = CostTable((1,), (64,), ((Curve((1.0, 8.0, 64.0, 512.0), (10.0, 10.1, 14.0, 80.0)),),))


def controller(costs: CostTable, ablation: Ablation | None = None) -> SpeculationController:
    config = SpeculationConfig(ablation=ablation)
    return SpeculationController(config, costs, Curve((1.0, 64.0), (0.5, 0.6)))


def path_mean_tokens(grower: TreeGrower, chosen: list[int]) -> float:
    """Σ over trees of 1 + the mean over root-to-leaf paths of Σ P, from the definition."""
    parents, probs = parents_of(grower), grower.column("path_probs")
    trees = grower.column("trees")
    total = 0.0
    for tree in range(grower.num_trees):
        mine = [i for i in chosen if trees[i] == tree]
        sums = []
        for leaf in set(mine) - {parents[i] for i in mine}:
            node: int | None = leaf
            sums.append(0.0)
            while node is not None:
                sums[-1] += float(probs[node])
                node = parents[node]
        total += 1.0 + (sum(sums) / len(sums) if sums else 0.0)
    return total


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), num_trees=st.integers(1, 3))
def test_path_mean_is_the_papers_length(seed: int, num_trees: int) -> None:
    plan = plan_of(ablation="path-mean", top_k=2, max_depth=3)
    grower = grow(plan, num_trees, random_children(seed, 2))
    order, tokens, _ = grower._scan()
    for count in range(len(order) + 1):
        expected = path_mean_tokens(grower, order[:count].tolist())
        assert tokens[count] == pytest.approx(expected)


def test_the_sum_counts_more_than_the_mean() -> None:
    """The control: where trees branch the two differ."""
    children = random_children(1, 3)
    sums = grow(plan_of(), 1, children)._scan()[1]
    means = grow(plan_of(ablation="path-mean"), 1, children)._scan()[1]
    assert max(sums) > max(means) + 0.1


def sizes(ablation: Ablation | None) -> list[int]:
    children = steady(0.95, 0.1)
    forest = grow(plan_of(ablation=ablation, max_nodes=8), 2, children).finish().forest
    return forest.sizes.tolist()


def test_an_even_split_gives_a_hopeless_tree_as_much() -> None:
    even, shared = sizes("even-split"), sizes(None)
    assert abs(even[0] - even[1]) <= 1
    assert shared[0] > shared[1] + 1


def test_without_entry_fee_layers_are_opened_that_cost_more_than_they_bring() -> None:
    dear = Curve((1.0, 64.0), (30.0, 31.0))
    children = steady(0.6)
    free = grow(plan_of(ablation="no-entry-fee", draft_layer=dear), 1, children)
    paid = grow(plan_of(draft_layer=dear), 1, children)
    assert len(free.layers) > len(paid.layers)


def test_without_fall_back_it_drafts_where_that_never_pays() -> None:
    whole, ablated = controller(STEEP), controller(STEEP, "no-fallback")
    for _ in range(TRIALS):  # Whoever comes is tried at first.
        assert whole.plan("smart", 1, 64.0, 1) is not None
        assert ablated.plan("smart", 1, 64.0, 1) is not None
    assert whole.plan("smart", 1, 64.0, 1) is None
    assert ablated.plan("smart", 1, 64.0, 1) is not None


def test_without_calibration_confidence_is_damped() -> None:
    full = controller(FLAT).plan("smart", 1, 64.0, 1)
    ablated = controller(FLAT, "no-calibration").plan("smart", 1, 64.0, 1)
    assert full is not None
    assert full.calibration
    assert ablated is not None
    assert ablated.calibration == ()


def test_a_fitted_curve_rises_but_misses_the_floor() -> None:
    full = controller(FLAT).plan("smart", 1, 64.0, 1)
    fitted = controller(FLAT, "fitted-curve").plan("smart", 1, 64.0, 1)
    assert full is not None
    assert fitted is not None
    assert np.all(np.diff(fitted.verify_knot_ms) >= 0.0)
    assert fitted.verify_knot_ms[0] > 0.0
    # Through the origin it cannot hold the cost of loading the weights.
    assert max(np.abs(np.log(np.divide(fitted.verify_knot_ms, full.verify_knot_ms)))) > 0.05


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_trees_stay_trees(ablation: Ablation) -> None:
    plan = controller(FLAT, ablation).plan("smart", 1, 64.0, 1)
    assert plan is not None
    forest = grow(plan, 1, random_children(3, 4)).finish().forest
    assert forest.problem(vocab_size=4, max_nodes=plan.max_nodes) is None
    assert forest.num_nodes > 0


def test_an_unknown_ablation_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"ablation": "no-cost"}, SpeculationConfig)
