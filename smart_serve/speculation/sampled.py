"""Policies that draw trees of a fixed shape: `delayed:K,L1,L2` and `distinct:K,L`.

`delayed` draws a trunk of L1 tokens, and then K independent branches of L2 tokens each ("Dynamic
Delayed Tree Expansion", arXiv 2602.16994): `delayed:1,L,0` is a sampled chain, `delayed:K,0,L` are
K independent paths. Paths that agree share their nodes; a node with m paths has m draws of its
children. `distinct` gives every node K different children, drawn without replacement, L layers
deep.
"""

from __future__ import annotations

import numpy as np

from smart_serve.config import sampled_shape
from smart_serve.speculation.drawn import DrawnGrower
from smart_serve.speculation.growth import Layer
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import FloatArray, IntArray


class SampledGrower(DrawnGrower):
    """Shapes are fixed before anything is drawn; here they are the one that the policy names."""

    def __init__(self, plan: GrowthPlan, num_trees: int) -> None:
        super().__init__(plan, num_trees)
        shape = sampled_shape(plan.policy)
        assert shape is not None
        self.with_replacement = shape.with_replacement
        sizes = shape.num_children, shape.trunk, shape.depth - shape.trunk
        self.set_shapes(np.tile(sizes, (num_trees, 1)))

    def set_shapes(self, shapes: IntArray) -> None:
        """(children, trunk, layers below it) of each tree. [B, 3]"""
        self._num_children, self._trunk, below = shapes.T
        self._depth = self._trunk + below

    def expand(self, layer: Layer) -> IntArray:
        drawn = super().expand(layer)
        is_short: IntArray = drawn[self._depth[layer.trees[drawn]] > len(self.layers)]
        return is_short

    def places(self, layer: Layer, laws: FloatArray) -> IntArray:
        trees = layer.frontier.trees
        num_draws = np.where(laws.any(axis=1), self._num_draws(trees, layer.frontier.ids), 0)
        if self.with_replacement:
            rows = np.repeat(np.arange(len(laws)), num_draws)
            drawn: IntArray = rows * laws.shape[1] + self.pick(laws[rows], trees[rows])
            return drawn
        left, places = laws.copy(), []
        for turn in range(int(num_draws.max(initial=0))):
            rows = np.flatnonzero((num_draws > turn) & left.any(axis=1))
            columns = self.pick(left[rows], trees[rows])
            left[rows, columns] = 0.0
            places.append(rows * laws.shape[1] + columns)
        return np.concatenate(places) if places else np.empty(0, np.int64)

    def _num_draws(self, trees: IntArray, parents: IntArray) -> IntArray:
        """Children to draw for each parent, from the shape and earlier draws alone. [F]"""
        depth = len(self.drawn)
        draws: IntArray = self._num_children[trees]
        if not self.with_replacement:
            return draws
        # Below the trunk as many as paths go through the parent.
        paths = np.ones(len(parents), np.int64)
        if depth > 0:
            paths = self.drawn[-1].counts[parents - self.layers[-2].first_id]
        return np.where(depth == self._trunk[trees], draws, paths)
