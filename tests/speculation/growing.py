"""Drives a grower with made-up drafters: functions from a node's path to its children."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from smart_serve.speculation.cost import Curve
from smart_serve.speculation.growth import TreeGrower
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.policies import make_grower

Children = Callable[[int, tuple[int, ...]], np.ndarray]
"""(tree, path of tokens) -> probabilities of the children, best first; their tokens are 0, 1, …"""
EXACT = tuple((0.0, 1.0) for _ in range(16))
"""Calibration that takes confidences at their word."""


def plan_of(policy: str = "smart", **changes: object) -> GrowthPlan:
    fields: dict[str, object] = {
        "policy": policy,
        "max_nodes": 64,
        "max_depth": 4,
        "top_k": 3,
        "calibration": EXACT,
        "verify_knots": (0, 64),
        "verify_knot_ms": (10.0, 12.0),
        "draft_layer": Curve((1.0, 64.0), (0.1, 0.2)),
    }
    return GrowthPlan(**(fields | changes))


def grow(plan: GrowthPlan, num_trees: int, children: Children) -> TreeGrower:
    """The grower after its last layer, as a drafter's loop leaves it."""
    grower = make_grower(plan, num_trees)
    frontier: list[tuple[int, tuple[int, ...]]] = [(tree, ()) for tree in range(num_trees)]
    while frontier:
        rows = np.stack([children(tree, path) for tree, path in frontier])
        width = rows.shape[1]
        tokens = np.tile(np.arange(width), (len(frontier), 1))
        chosen = grower.add_layer(tokens, np.log(np.maximum(rows, 1e-300)))
        frontier = [
            (frontier[i // width][0], (*frontier[i // width][1], i % width))
            for i in chosen.tolist()
        ]
    return grower


def random_children(seed: int, width: int, sharpness: float = 0.5) -> Children:
    def children(tree: int, path: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([seed, tree, len(path), *path])
        return np.sort(rng.dirichlet(np.full(width + 1, sharpness)))[::-1][:width]

    return children


def steady(*confidences: float) -> Children:
    """Tree i's best child has confidences[i] everywhere, the others share a hundredth."""

    def children(tree: int, path: tuple[int, ...]) -> np.ndarray:
        return np.asarray([confidences[tree], 0.006, 0.004])

    return children


def parents_of(grower: TreeGrower) -> list[int | None]:
    """Candidate id of each candidate's parent; None: a root."""
    parents = grower.column("parents").tolist()
    first = len(grower.layers[0].trees)
    return [None if i < first else parents[i] for i in range(len(parents))]
