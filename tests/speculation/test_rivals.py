"""The rivals' rules, against trees worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from smart_serve.config import SpeculationConfig, is_policy
from smart_serve.errors import ClientError, ConfigError
from smart_serve.messages import SamplingParams
from smart_serve.speculation.chain import ChainGrower
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.smart_paper import FittedCost, PaperGrower, fit_cost


def plan(policy: str, **fields: object) -> GrowthPlan:
    """A step whose verification costs 4 ms and 0.1 ms a node, and a draft layer 1 ms."""
    defaults: dict[str, object] = {
        "max_nodes": 256,
        "max_depth": 3,
        "top_k": 2,
        "nodes_per_tree": 64,
        "verify_knots": (0, 64),
        "verify_knot_ms": (4.0, 10.4),
        "draft_layer": Curve((1.0,), (1.0,)),
    }
    return GrowthPlan(policy=policy, **(defaults | fields))  # type: ignore[arg-type]


def layer(*rows: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Children of each frontier node by probability; tokens count up."""
    probs = np.asarray(rows)
    return np.arange(probs.size).reshape(probs.shape), np.log(probs)


def test_chain_takes_the_best_child_each_time_and_k_of_them() -> None:
    grower = ChainGrower(plan("chain:3", top_k=1), 2)
    for _ in range(2):
        assert grower.add_layer(*layer((0.5,), (0.9,))).tolist() == [0, 1]
    assert grower.add_layer(*layer((0.5,), (0.9,))).tolist() == []
    forest = grower.finish().forest
    assert forest.sizes.tolist() == [3, 3]
    assert forest.parents.tolist() == [0, 1, 2, 0, 1, 2]


def test_paper_keeps_the_whole_first_layer_however_dear_it_is() -> None:
    """With L(root) = 0 nothing can be refused: the published form never decodes plainly."""
    dear = plan("smart-paper", verify_knot_ms=(4.0, 4000.0), draft_layer=Curve((1.0,), (50.0,)))
    grower = PaperGrower(dear, 1)
    grower.add_layer(*layer((0.01, 0.005)))
    assert grower.choose().tolist() == [0, 1]


def test_paper_rule_on_a_tree_worked_by_hand() -> None:
    """One root, children of 0.8 and 0.2: |T| = 2, two paths, L = (0.8 + 0.2) / 2 = 0.5.

    A grandchild u is kept iff 0.8 · (c_T P(u)/2) / ΔC > c_T · 0.5 / C, i.e. P(u) > 1.25 ΔC/C.
    """
    grower = PaperGrower(plan("smart-paper"), 1)
    cost = FittedCost(draft_slope=1.0, scale=1.0, rate=0.4, power=1.0)
    grower._cost = cost
    grower.add_layer(*layer((0.8, 0.2)))
    two = np.asarray([2.0])
    total, marginal = 2.0 + np.exp(0.8) - 1.0, 1.0 + 0.4 * np.exp(0.8)
    assert cost.total(two)[0] == pytest.approx(total)
    assert cost.marginal(two)[0] == pytest.approx(marginal)
    threshold = 1.25 * marginal / total
    assert 0.7 < threshold < 0.79
    # 0.8 · 0.99 is kept, 0.8 · 0.01 and both children of 0.2 are not.
    kept = grower.add_layer(*layer((0.99, 0.01), (0.9, 0.1)))
    assert kept.tolist() == [0]
    assert grower.finish().forest.sizes.tolist() == [3]


def test_paper_mean_over_paths_counts_shared_prefixes_once_for_each_path() -> None:
    """Root → a (0.8) → b, c (0.4 each): L = mean(0.8 + 0.4, 0.8 + 0.4) = 1.2, two paths."""
    grower = PaperGrower(plan("smart-paper", max_depth=4), 1)
    # A power of 0.2: a further node costs a fifth of the average one, so both are kept.
    grower._cost = FittedCost(draft_slope=0.0, scale=1.0, rate=1e-3, power=0.2)
    grower.add_layer(*layer((0.8,)))
    grower.add_layer(*layer((0.5, 0.5)))
    assert grower._paths.tolist() == [2.0]
    assert grower._path_sums.tolist() == pytest.approx([2.4])


def test_paper_fit_goes_through_five_points_of_a_curve_of_its_own_form() -> None:
    knots = tuple(range(65))
    truth = tuple(2.0 * np.expm1(0.05 * np.arange(65.0) ** 0.9) + 1e-12)
    fitted = fit_cost(plan("smart-paper", verify_knots=knots, verify_knot_ms=truth), 1)
    at = np.asarray([1.0, 8.0, 32.0, 64.0])
    expected = at + 2.0 * np.expm1(0.05 * at**0.9)
    np.testing.assert_allclose(fitted.total(at), expected, rtol=0.05)


def test_paper_budget_is_split_evenly() -> None:
    grower = PaperGrower(plan("smart-paper", nodes_per_tree=2), 2)
    grower._cost = FittedCost(draft_slope=1e-9, scale=1e-9, rate=1e-3, power=1.0)
    # Both trees hold their two nodes after the first layer, so neither grows further.
    assert grower.add_layer(*layer((0.9, 0.05), (0.5, 0.4))).tolist() == []
    assert grower.finish().forest.sizes.tolist() == [2, 2]


@pytest.mark.parametrize("name", ["chain:0", "chain:17", "chain:", "smarter", "", "static:"])
def test_unknown_policies_are_refused(name: str) -> None:
    assert not is_policy(name)
    with pytest.raises(ConfigError):
        SpeculationConfig(policy=name)
    with pytest.raises(ClientError):
        SamplingParams(policy=name)
