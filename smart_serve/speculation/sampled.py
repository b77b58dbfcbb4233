"""Policies that draw their trees: `delayed:K,L1,L2` and `distinct:K,L`.

`delayed` draws a trunk of L1 tokens, and then K independent branches of L2 tokens each ("Dynamic
Delayed Tree Expansion", arXiv 2602.16994): `delayed:1,L,0` is a sampled chain, `delayed:K,0,L` are
K independent paths. Paths that agree share their nodes; a node with m paths has m draws of its
children. `distinct` gives every node K different children, drawn without replacement, L layers
deep.

How many children are drawn is never decided by what they turn out to be: a tree pruned by its
siblings' values would not be verified without bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from smart_serve.config import SampledShape, sampled_shape
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.growth import Growth, Layer, TreeGrower
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Draws from one layer's candidates."""

    parents: IntArray  # [F] candidate id of each parent; of a root, its tree
    trees: IntArray  # [F]
    laws: FloatArray  # [F, k]
    counts: IntArray  # [F * k] how often each candidate was drawn
    ids: IntArray  # [D] candidate of every draw, siblings in order


class SampledGrower(TreeGrower):
    """Children are drawn by the drafter's distribution at the request's temperature."""

    def __init__(self, plan: GrowthPlan, num_trees: int) -> None:
        super().__init__(plan, num_trees)
        shape = sampled_shape(plan.policy)
        assert shape is not None
        self._shape: SampledShape = shape
        self._generators = [np.random.default_rng(seed) for seed in plan.draw_seeds]
        self._drawn: list[_Drawn] = []

    def expand(self, layer: Layer) -> IntArray:
        return np.flatnonzero(self._draw(layer).counts)

    def choose(self) -> IntArray:
        if len(self._drawn) < len(self.layers):
            # The deepest layer is drawn like the others, though none of it is expanded.
            self._draw(self.layers[-1])
        return np.flatnonzero(np.concatenate([drawn.counts for drawn in self._drawn]))

    def finish(self) -> Growth:
        growth = super().finish()
        return replace(growth, laws=self._laws()) if self.layers else growth

    def _draw(self, layer: Layer) -> _Drawn:
        trees, parents = layer.trees[:: layer.width], layer.parents[:: layer.width]
        laws = self._layer_laws(layer, trees)
        places = self._places(laws, trees, self._num_draws(parents))
        counts = np.bincount(places, minlength=laws.size)
        drawn = _Drawn(parents, trees, laws, counts, layer.first_id + places)
        self._drawn.append(drawn)
        return drawn

    def _num_draws(self, parents: IntArray) -> IntArray:
        """Children to draw for each parent, from the shape and earlier draws alone. [F]"""
        depth, shape = len(self._drawn), self._shape
        if not shape.with_replacement or depth == shape.trunk:
            return np.full(len(parents), shape.num_children)
        if depth < shape.trunk:
            return np.ones(len(parents), np.int64)
        # As many as paths go through the parent.
        counts: IntArray = self._drawn[-1].counts[parents - self.layers[-2].first_id]
        return counts

    def _layer_laws(self, layer: Layer, trees: IntArray) -> FloatArray:
        """q ∝ confidence^(1/T) of every parent; at temperature 0 the best one alone. [F, k]"""
        weights = layer.confidences.reshape(-1, layer.width)
        best = weights.max(axis=1, keepdims=True)
        temperatures = np.asarray(self.plan.temperatures)[trees][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            laws = np.where(weights > 0.0, (weights / best) ** (1.0 / temperatures), 0.0)
        first = np.arange(layer.width) == weights.argmax(axis=1)[:, None]
        laws = np.where(temperatures > 0.0, laws, first & (weights > 0.0))
        total = laws.sum(axis=1, keepdims=True)
        return laws / np.where(total > 0.0, total, 1.0)

    def _places(self, laws: FloatArray, trees: IntArray, num_draws: IntArray) -> IntArray:
        """Places in the flattened [F * k] of all draws; a parent without any mass has none."""
        num_draws = np.where(laws.any(axis=1), num_draws, 0)
        if self._shape.with_replacement:
            rows = np.repeat(np.arange(len(laws)), num_draws)
            drawn: IntArray = rows * laws.shape[1] + self._pick(laws[rows], trees[rows])
            return drawn
        left, places = laws.copy(), []
        for turn in range(int(num_draws.max(initial=0))):
            rows = np.flatnonzero((num_draws > turn) & left.any(axis=1))
            columns = self._pick(left[rows], trees[rows])
            left[rows, columns] = 0.0
            places.append(rows * laws.shape[1] + columns)
        return np.concatenate(places) if places else np.empty(0, np.int64)

    def _pick(self, weights: FloatArray, trees: IntArray) -> IntArray:
        """A column for every row of weights [D, k], each by its tree's next uniform. [D]"""
        counts = np.bincount(trees, minlength=self.num_trees)
        # Rows come tree by tree: a frontier keeps the order of its parents.
        uniforms = [rng.random(n) for rng, n in zip(self._generators, counts, strict=True)]
        cdf = np.cumsum(weights, axis=1)
        below = np.nextafter(cdf[:, -1], 0.0)
        threshold = np.minimum(np.concatenate(uniforms) * cdf[:, -1], below)
        columns: IntArray = (cdf <= threshold[:, None]).sum(axis=1)
        return columns

    def _laws(self) -> DraftLaws:
        _, _, row_of = self._rows(self._offered())
        roots, *below = self._drawn
        rows = [np.zeros(len(roots.trees), np.int64), *(row_of[drawn.parents] for drawn in below)]
        ids = np.concatenate([drawn.ids for drawn in self._drawn])
        laws = np.concatenate([drawn.laws for drawn in self._drawn])
        has_law = laws.any(axis=1)
        return DraftLaws(
            trees=np.concatenate([drawn.trees for drawn in self._drawn])[has_law],
            rows=np.concatenate(rows)[has_law],
            token_ids=np.concatenate(
                [layer.token_ids.reshape(-1, layer.width) for layer in self.layers]
            )[has_law],
            probs=laws[has_law],
            draw_trees=self.column("trees")[ids],
            draw_rows=row_of[ids],
            with_replacement=self._shape.with_replacement,
        )
