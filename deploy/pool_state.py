"""How each configured pool stands, also one of which nothing is heard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from deploy.args import PoolArgs
from smart_serve.routing.cluster_view import ClusterView


class PoolState(msgspec.Struct, frozen=True):
    """One pool."""

    state: Literal["serving", "starting", "no_node"]
    """serving: a replica reports; starting: none does yet; no_node: none can start, for the cluster
    has no node of the kind that the pool asks for. The other pools serve meanwhile."""
    replicas: int
    """That report."""


def pool_states(
    pools: Sequence[PoolArgs], view: ClusterView, nodes: Sequence[dict[str, Any]]
) -> dict[str, PoolState]:
    """`nodes`: as `ray.nodes` tells of them."""
    loads = view.pools()
    return {pool.name: _state(pool, loads.get(pool.name), nodes) for pool in pools}


def _state(pool: PoolArgs, load: Any, nodes: Sequence[dict[str, Any]]) -> PoolState:
    if load is not None and load.replicas > 0:
        return PoolState("serving", load.replicas)
    return PoolState("starting" if any(_can_hold(pool, one) for one in nodes) else "no_node", 0)


def _can_hold(pool: PoolArgs, node: dict[str, Any]) -> bool:
    resources = node["Resources"]
    if not node["Alive"] or resources.get("CPU", 0) < pool.num_cpus:
        return False
    return resources.get("GPU", 0) >= pool.num_gpus and pool.fits(node["Labels"], resources)
