"""`smart` without one of its parts, to measure what that part brings. For benchmarks alone.

path-mean        expected length as the paper's mean over paths, not the sum over nodes
even-split       every sequence gets as many nodes as the others, however hopeful its tree is
fitted-curve     verification costs what the paper's exponential through five points says
no-calibration   acceptance is confidence damped by α, whatever was observed
no-fallback      it always drafts; plain decoding is no choice
no-entry-fee     every layer is opened whose nodes are worth verifying, whatever the pass costs
"""

from __future__ import annotations

import msgspec.structs
import numpy as np

from smart_serve.config import Ablation
from smart_serve.speculation.growth import Layer, rank_in_runs
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.smart import SmartGrower
from smart_serve.speculation.smart_paper import fit_curve
from smart_serve.speculation.tree import FloatArray, IntArray


def ablated_plan(plan: GrowthPlan, ablation: Ablation, batch: int) -> GrowthPlan:
    """`plan` as a controller without that part makes it."""
    if ablation == "no-calibration":
        return msgspec.structs.replace(plan, calibration=())
    if ablation == "fitted-curve":
        return msgspec.structs.replace(plan, verify_knot_ms=_fitted_ms(plan, batch))
    return msgspec.structs.replace(plan, ablation=ablation)


def ablated_grower(ablation: Ablation) -> type[SmartGrower]:
    """The grower without that part; `smart`'s own where the part is not the grower's."""
    growers: dict[Ablation, type[SmartGrower]] = {
        "path-mean": PathMeanGrower,
        "even-split": EvenSplitGrower,
        "no-entry-fee": FreeLayersGrower,
    }
    return growers.get(ablation, SmartGrower)


def _fitted_ms(plan: GrowthPlan, batch: int) -> tuple[float, ...]:
    """The paper's curve for a batch, over roots and nodes: at no node it must cost something."""
    tokens = tuple(batch + knot for knot in plan.verify_knots)
    fitted = fit_curve(tokens, plan.verify_knot_ms, 0.0, batch)
    each = fitted.total(np.asarray(tokens, np.float64) / batch)
    return tuple((batch * each).tolist())


class FreeLayersGrower(SmartGrower):
    """Opens a layer for every candidate that is worth verifying."""

    def expand(self, layer: Layer) -> IntArray:
        order, _, rates = self._scan()
        worth = order[: int(rates.argmax())]
        worth = worth[worth >= layer.first_id] - layer.first_id
        self._spent_ms += self.plan.draft_layer(len(worth))
        return np.sort(worth)


class EvenSplitGrower(SmartGrower):
    """Takes the best node of every tree, then the second best of every tree, and so on."""

    def _ranked(
        self, best: tuple[IntArray, FloatArray], layer: Layer
    ) -> tuple[IntArray, FloatArray]:
        trees, path_probs = self.column("trees"), self.column("path_probs")
        by_tree = np.lexsort((-path_probs, trees))
        ranks = np.empty(len(trees), np.int64)
        ranks[by_tree] = rank_in_runs(trees[by_tree])
        order = np.lexsort((-path_probs, ranks))[: self.plan.max_nodes]
        return order, path_probs[order]


class PathMeanGrower(SmartGrower):
    """Counts a tree as the mean over its root-to-leaf paths of the sum of P along the path."""

    def _gains(self, ids: IntArray, path_probs: FloatArray) -> FloatArray:
        trees, parents, sums = self._columns(self.column("path_probs"))
        # A parent's first child makes its path longer; each further one is a path more.
        is_first = np.zeros(len(ids), np.bool_)
        is_first[np.unique(parents[ids], return_index=True)[1]] = True
        added = np.where(is_first, path_probs, sums[ids])
        by_tree = np.argsort(trees[ids], kind="stable")
        starts = np.flatnonzero(np.diff(trees[ids][by_tree], prepend=-1))
        totals = _cumsum_in_runs(added[by_tree], starts)
        means = totals / (1.0 + _cumsum_in_runs((~is_first[by_tree]).astype(np.float64), starts))
        before = np.concatenate(([0.0], means[:-1]))
        before[starts] = 0.0
        gains = np.empty(len(ids))
        gains[by_tree] = means - before
        return gains

    def _next_gains(self, layer: Layer, worth: IntArray, taken: IntArray) -> FloatArray:
        trees, parents, _ = self._columns(self.column("path_probs"))
        is_leaf = np.ones(len(trees), np.bool_)
        is_leaf[parents[taken][parents[taken] >= 0]] = False
        leaves = np.bincount(trees[taken][is_leaf[taken]], minlength=self.num_trees)
        return super()._next_gains(layer, worth, taken) / np.maximum(leaves[layer.trees[worth]], 1)

    def _columns(self, path_probs: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
        """Of all candidates: tree, parent (a root is −1 − its tree), Σ P along the path."""
        trees, parents = self.column("trees"), self.column("parents").copy()
        first = len(self.layers[0].trees)
        parents[:first] = -1 - parents[:first]
        sums = path_probs.copy()
        for layer in self.layers[1:]:
            ids = slice(layer.first_id, layer.first_id + len(layer.trees))
            sums[ids] += sums[layer.parents]
        return trees, parents, sums


def _cumsum_in_runs(values: FloatArray, starts: IntArray) -> FloatArray:
    """Running sums [n] that begin anew at each of `starts`."""
    total = np.cumsum(values)
    lengths = np.diff(starts, append=len(values))
    sums: FloatArray = total - np.repeat(total[starts] - values[starts], lengths)
    return sums
