"""How large the trees of one step may be, by policy."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from smart_serve.config import SpeculationConfig, chain_length, sampled_shape, tree_size
from smart_serve.messages import SpeculationPlan
from smart_serve.speculation.draft_laws import LAW_WIDTH
from smart_serve.speculation.static_tree import Shape, is_static


@dataclass(frozen=True, slots=True)
class Bounds:
    """Nodes over the batch, layers, children of one node that are looked at, nodes of one tree."""

    max_nodes: int
    max_depth: int
    top_k: int
    nodes_per_tree: int | None = None


def bounds_of(
    policy: str,
    config: SpeculationConfig,
    shape: Shape,
    batch: int,
    envelope: SpeculationPlan | None,
) -> Bounds:
    """By the policy's own rules; the envelope binds `smart` and `smart-drawn`, the others are what
    they are."""
    length = config.max_depth if policy == "adaptive-chain" else chain_length(policy)
    if length is not None:
        return Bounds(batch * length, length, 1, length)
    drawn = sampled_shape(policy)
    if drawn is not None:
        bounds = Bounds(batch * drawn.num_nodes, drawn.depth, LAW_WIDTH, drawn.num_nodes)
        return _within(bounds, config, envelope) if policy == "smart-drawn" else bounds
    if is_static(policy):
        width = 1 + max(max(path) for path in shape)
        return Bounds(batch * len(shape), max(map(len, shape)), width, len(shape))
    if policy == "eagle2":
        nodes = config.eagle2_nodes
        return Bounds(batch * nodes, config.eagle2_depth, config.eagle2_top_k, nodes)
    size = tree_size(policy)
    if size is not None:
        nodes, depth = size
        # As many expanded nodes a layer as fill the tree evenly, as 10 do for EAGLE-2's 60 in 6.
        return Bounds(batch * nodes, depth, -(-nodes // depth), nodes)
    if policy == "smart-paper":
        # A tree may pass its budget by one layer: the children of all that it then holds.
        nodes = max(1, config.paper_nodes // batch)
        most = batch * (nodes + 1) * (config.top_k + 1)
        return Bounds(most, config.max_depth, config.top_k, nodes)
    bounds = Bounds(config.max_nodes, config.max_depth, config.top_k)
    return _within(bounds, config, envelope)


def _within(bounds: Bounds, config: SpeculationConfig, envelope: SpeculationPlan | None) -> Bounds:
    """What is sized by its worth, within the configuration and the router's bounds. A law is not
    cut: `top_k` is for candidates."""
    most = config if envelope is None else envelope
    return replace(
        bounds,
        max_nodes=min(bounds.max_nodes, config.max_nodes, most.max_nodes),
        max_depth=min(bounds.max_depth, config.max_depth, most.max_depth),
        top_k=bounds.top_k if bounds.nodes_per_tree else min(bounds.top_k, most.top_k),
    )


@functools.lru_cache(maxsize=128)
def knots_up_to(max_nodes: int, batch: int, stairs: tuple[int, ...] = ()) -> tuple[int, ...]:
    """0, 1, 2, … densely at first, then about four to the octave, up to `max_nodes`; and both sides
    of every stair of the cost that `batch` roots and so many nodes climb."""
    grid = np.round(2.0 ** np.arange(0.0, np.log2(max_nodes) + 0.01, 0.25)).astype(int)
    sides = (stair - batch + side for stair in stairs for side in (0, 1))
    inside = {n for n in (*grid.tolist(), *sides) if 0 < n < max_nodes}
    return (0, *sorted(inside), max_nodes)
