"""The chain whose length is argued from measured goodput."""

from __future__ import annotations

import numpy as np
import pytest
from growing import plan_of

from smart_serve.config import SpeculationConfig
from smart_serve.speculation.adaptive_chain import LOOK_EVERY, AdaptiveChain
from smart_serve.speculation.controller import SpeculationController
from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.policies import make_grower
from smart_serve.speculation.tree import Forest

LAYER = Curve((1.0,), (0.5,))


def chains(batch: int, length: int, accepted: int) -> tuple[Forest, np.ndarray]:
    """`batch` chains, the first `accepted` tokens of each of which came true."""
    depths = np.tile(np.arange(1, length + 1), batch)
    ones = np.ones(batch * length)
    forest = Forest(np.arange(batch + 1) * length, depths, depths - 1, depths, ones, ones)
    return forest, depths <= accepted


def after(accepted: int, length: int = 6, batch: int = 2) -> AdaptiveChain:
    chain = AdaptiveChain(8)
    for _ in range(100):
        chain.observe(*chains(batch, length, accepted))
    return chain


def plan(node_ms: float = 0.01) -> GrowthPlan:
    return plan_of(
        "adaptive-chain", max_depth=8, max_nodes=16, verify_knots=(0, 16),
        verify_knot_ms=(10.0, 10.0 + 16 * node_ms), draft_layer=LAYER,
    )  # fmt: skip


@pytest.mark.parametrize("accepted", [1, 2, 4])
def test_the_chain_is_as_long_as_tokens_are_accepted(accepted: int) -> None:
    found = after(accepted).plan(plan(), 2, 2)
    assert found is not None
    assert (found.max_depth, found.nodes_per_tree) == (accepted, accepted)


@pytest.mark.parametrize("layer_ms", [0.1, 1.0, 3.0])
def test_the_length_is_that_of_brute_force(layer_ms: float) -> None:
    chain = AdaptiveChain(8)
    rng = np.random.default_rng(3)
    for _ in range(200):
        chain.observe(*chains(1, 8, int(rng.geometric(0.3)) - 1))
    shares = np.cumprod([float(a) for a in chain._accepted / chain._seen])
    rates = [(1.0 + shares[:k].sum()) / (10.0 + k * (layer_ms + 0.1)) for k in range(9)]
    priced = plan_of(
        "adaptive-chain", verify_knots=(0, 8), verify_knot_ms=(10.0, 10.8),
        draft_layer=Curve((1.0,), (layer_ms,)),
    )  # fmt: skip
    found = chain.plan(priced, 1, 1)
    assert found is not None
    assert rates[found.max_depth] >= 0.99 * max(rates)


def test_a_useless_drafter_is_asked_for_one_token_now_and_then() -> None:
    chain = after(0)
    lengths = [chain.plan(plan(node_ms=1.0), 2, 2) for _ in range(10 * LOOK_EVERY)]
    drafted = [found.max_depth for found in lengths if found is not None]
    assert drafted == [1] * 10


def test_the_controller_runs_it() -> None:
    table = CostTable((1,), (64,), ((Curve((1.0, 513.0), (10.0, 15.0)),),))
    controller = SpeculationController(SpeculationConfig(), table, LAYER)
    found = controller.plan("adaptive-chain", 2, 100.0, 2)
    assert found is not None
    grower = make_grower(found, 2)
    chosen = grower.add_layer(np.asarray([[1], [1]]), np.log([[0.5], [0.5]]))
    assert len(chosen) == (0 if found.max_depth == 1 else 2)
