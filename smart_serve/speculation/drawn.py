"""Trees that are drawn from the drafter's distribution: what all policies that draw have in common.

How many children are drawn is decided from distributions and earlier draws alone, never by what the
children turn out to be: a tree pruned by its siblings' values would not be verified without bias.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.growth import Growth, Layer, TreeGrower
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Drawn:
    """Draws from one layer's candidates."""

    parents: IntArray  # [F] candidate id of each parent; of a root, its tree
    trees: IntArray  # [F]
    laws: FloatArray  # [F, k]
    counts: IntArray  # [F * k] how often each candidate was drawn
    ids: IntArray  # [D] candidate of every draw, siblings in order


class DrawnGrower(TreeGrower):
    """Children are drawn by the drafter's distribution at the request's temperature; how many, a
    policy says."""

    with_replacement: bool

    def __init__(self, plan: GrowthPlan, num_trees: int) -> None:
        super().__init__(plan, num_trees)
        self._generators = [np.random.default_rng(seed) for seed in plan.draw_seeds]
        self.drawn: list[Drawn] = []

    @abstractmethod
    def places(self, layer: Layer, laws: FloatArray) -> IntArray:
        """Draws from `laws` [F, k], as places in the flattened [F * k], siblings in order; a parent
        without any mass has none."""

    def expand(self, layer: Layer) -> IntArray:
        return np.flatnonzero(self._draw(layer).counts)

    def choose(self) -> IntArray:
        if len(self.drawn) < len(self.layers):
            # The deepest layer is drawn like the others, though none of it is expanded.
            self._draw(self.layers[-1])
        return np.flatnonzero(np.concatenate([drawn.counts for drawn in self.drawn]))

    def finish(self) -> Growth:
        growth = super().finish()
        return replace(growth, laws=self._laws()) if self.layers else growth

    def _draw(self, layer: Layer) -> Drawn:
        trees, parents = layer.frontier.trees, layer.frontier.ids
        laws = self._layer_laws(layer, trees)
        places = self.places(layer, laws)
        counts = np.bincount(places, minlength=laws.size)
        drawn = Drawn(parents, trees, laws, counts, layer.first_id + places)
        self.drawn.append(drawn)
        return drawn

    def _layer_laws(self, layer: Layer, trees: IntArray) -> FloatArray:
        """q ∝ confidence^(1/T) of every parent; at temperature 0 the best one alone. [F, k]"""
        weights = layer.confidences.reshape(-1, layer.width)
        best = weights.max(axis=1, keepdims=True)
        temperatures = np.asarray(self.plan.temperatures)[trees][:, None]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            laws = np.where(weights > 0.0, (weights / best) ** (1.0 / temperatures), 0.0)
        first = np.arange(layer.width) == weights.argmax(axis=1)[:, None]
        laws = np.where(temperatures > 0.0, laws, first & (weights > 0.0))
        total = laws.sum(axis=1, keepdims=True)
        return laws / np.where(total > 0.0, total, 1.0)

    def pick(self, weights: FloatArray, trees: IntArray) -> IntArray:
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
        roots, *below = self.drawn
        rows = [np.zeros(len(roots.trees), np.int64), *(row_of[drawn.parents] for drawn in below)]
        ids = np.concatenate([drawn.ids for drawn in self.drawn])
        laws = np.concatenate([drawn.laws for drawn in self.drawn])
        has_children = np.concatenate(
            [drawn.counts.reshape(len(drawn.trees), -1).any(axis=1) for drawn in self.drawn]
        )
        return DraftLaws(
            trees=np.concatenate([drawn.trees for drawn in self.drawn])[has_children],
            rows=np.concatenate(rows)[has_children],
            token_ids=np.concatenate(
                [layer.token_ids.reshape(-1, layer.width) for layer in self.layers]
            )[has_children],
            probs=laws[has_children],
            draw_trees=self.column("trees")[ids],
            draw_rows=row_of[ids],
            with_replacement=self.with_replacement,
        )
