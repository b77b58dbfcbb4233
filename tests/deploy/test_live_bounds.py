"""What an operator changes without a restart."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.args import AppArgs, PoolArgs
from deploy.router import RouterReplica
from smart_serve.errors import ConfigError
from smart_serve.messages import SpeculationPlan
from tests.routing.load_reports import report

ARGS = AppArgs(
    pools=(PoolArgs(name="fast"), PoolArgs(name="slow")),
    engine={"speculation": {"max_nodes": 100}},
)


async def plan(router: RouterReplica, pool: str) -> SpeculationPlan:
    return await router.report(report(f"{pool}-0", pool))


async def test_the_next_envelope_has_it_in_that_pool_alone() -> None:
    router = RouterReplica(ARGS)
    before = await plan(router, "slow")
    router.reconfigure({"pools": {"slow": {"max_nodes": 7, "max_depth": 2, "top_k": 3}}})
    slow, fast = await plan(router, "slow"), await plan(router, "fast")
    assert (slow.max_nodes, slow.max_depth, slow.top_k) == (7, 2, 3)
    assert (fast.max_nodes, fast.max_depth, fast.top_k) == (100, before.max_depth, before.top_k)
    assert slow.epoch > before.epoch
    router.reconfigure({"pools": {"slow": {"speculate": False}}})
    assert (await plan(router, "slow")).policy == "off"
    router.reconfigure({})
    again = await plan(router, "slow")
    assert (again.policy, again.max_nodes) == (before.policy, before.max_nodes)


async def test_a_bound_narrows_only() -> None:
    router = RouterReplica(ARGS)
    router.reconfigure({"pools": {"slow": {"max_nodes": 10**6}}})
    assert (await plan(router, "slow")).max_nodes == 100


@pytest.mark.parametrize(
    "wrong",
    [
        {"pool": {}},
        {"pools": {"medium": {}}},
        {"pools": {"slow": {"max_nodes": 0}}},
        {"pools": {"slow": {"max_nodes": "7"}}},
        {"pools": {"slow": {"policy": "eagle2"}}},
    ],
)
def test_a_mistake_is_told_and_changes_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="user_config of the router"):
        RouterReplica(ARGS).reconfigure(wrong)
