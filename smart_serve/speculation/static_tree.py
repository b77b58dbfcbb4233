"""Policy `static`: one tree shape for every sequence and step, as EAGLE-1, Medusa and Sequoia use.

A shape is a list of paths; a path names the rank of the child taken at each depth, 0 for the most
likely one. `[[0], [1], [0, 0]]` is the two best children of the root and the best child of the
better one. `static:FILE` reads the shape from a JSON file. Only an operator may name a file: a
request says `static` and gets the operator's tree.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from smart_serve.errors import ConfigError
from smart_serve.speculation.growth import Layer, TreeGrower
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import IntArray

Shape = tuple[tuple[int, ...], ...]
"""Paths of child ranks."""

# EAGLE's tree of 25 nodes (SafeAILab/EAGLE, model/choices.py, mc_sim_7b_63).
EAGLE_SHAPE: Shape = (
    *((0,), (1,), (2,), (3,)),
    *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)),
    *((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0)),
    *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2), (0, 0, 0, 0, 0), (0, 0, 0, 0, 1)),
)
MAX_DEPTH = 16
MAX_RANK = 63
MAX_NODES = 1024
"""Far beyond any useful tree; a mistaken file must not take the machine down."""


def is_static(policy: str) -> bool:
    """Whether `policy` is `static` or `static:FILE`."""
    return policy == "static" or policy.startswith("static:")


def shape_of(policy: str) -> Shape:
    """The shape that `policy` names; EAGLE's where it names none."""
    if not policy.startswith("static:"):
        return EAGLE_SHAPE
    return load_shape(Path(policy.removeprefix("static:")))


def load_shape(path: Path) -> Shape:
    """Shape from a JSON file. Raises `ConfigError`."""
    try:
        shape = msgspec.json.decode(path.read_bytes(), type=tuple[tuple[int, ...], ...])
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"static tree {path}: {error}") from error
    problem = shape_problem(shape)
    if problem is not None:
        raise ConfigError(f"static tree {path}: {problem}")
    return shape


def shape_problem(shape: Shape) -> str | None:
    """Why `shape` is no tree, or None."""
    known = {(), *shape}
    if not shape or len(shape) > MAX_NODES:
        return f"1 to {MAX_NODES} paths are needed"
    if len(known) != len(shape) + 1:
        return "a path is empty or stands there twice"
    for path in shape:
        if path[:-1] not in known:
            return f"{list(path)} has no parent"
        if len(path) > MAX_DEPTH or not all(0 <= rank <= MAX_RANK for rank in path):
            return f"{list(path)} is deeper than {MAX_DEPTH} or has a rank outside 0 to {MAX_RANK}"
    return None


class StaticGrower(TreeGrower):
    """Places every candidate on the shape, `plan.shape`; what has no place is left out."""

    def __init__(self, plan: GrowthPlan, num_trees: int) -> None:
        super().__init__(plan, num_trees)
        numbers = {path: i for i, path in enumerate(sorted(plan.shape, key=len), start=1)}
        # [shape node, rank] -> shape node. 0 is the root, so as a child it means "none".
        self._child = np.zeros((len(numbers) + 1, plan.top_k), np.int64)
        for path, number in numbers.items():
            self._child[numbers.get(path[:-1], 0), path[-1]] = number
        self._places: list[IntArray] = []

    def expand(self, layer: Layer) -> IntArray:
        places = self._place(layer)
        return np.flatnonzero((places > 0) & self._child[places].any(axis=1))

    def choose(self) -> IntArray:
        if len(self._places) < len(self.layers):
            # The deepest layer is placed like the others, though none of it is expanded.
            self._place(self.layers[-1])
        return np.flatnonzero(np.concatenate(self._places))

    def _place(self, layer: Layer) -> IntArray:
        """Shape node of every candidate of the newest layer; 0: none. [n]"""
        parents = np.zeros(len(layer.trees), np.int64)
        if self._places:
            parents = np.concatenate(self._places)[layer.parents]
        # A node's children stand together, best first.
        starts = np.flatnonzero(np.diff(layer.parents, prepend=np.nan) != 0)
        lengths = np.diff(starts, append=len(layer.parents))
        ranks = np.arange(len(layer.parents)) - np.repeat(starts, lengths)
        places: IntArray = self._child[parents, ranks]
        self._places.append(places)
        return places
