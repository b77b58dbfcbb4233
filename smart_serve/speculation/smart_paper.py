"""Policy `smart-paper`: Algorithm 1 of SMART as published (arXiv 2604.09731v1), for comparison.

    R(T) = c_T · L(T) / (C_draft(T) + C_verify(T))                                     (1)
    L(T) = mean over root-to-leaf paths of Σ_j P(x_1..j)                               (2)
    C_draft = λ|T| ;  C_verify = γ(exp(δ|T|^ρ) − 1)                                    (4), (5)
    layer l: keep u iff  α · ΔC_target(u)/ΔC_spec(u) − C_target/C_spec > 0             (16)
             ΔC_target = c_T · P(u)/|P| ,  ΔC_spec = λ + γδρ|T|^(ρ−1) exp(δ|T|^ρ)       (13)–(15)
    stop when nothing is kept, or |S| ≥ B_verify/b, or l = d; everything kept is verified.

P is the product of raw draft probabilities, C is fitted through the origin from five measurements,
and every sequence of a batch of b has a tree of its own: |T| counts its nodes, and its share of a
cost is a b-th. How the batch enters the fit is not stated in the paper; this is the consistent
reading. With L(root) = 0 the first layer is always kept, so plain decoding is never chosen.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smart_serve.speculation.calibration import ALPHA
from smart_serve.speculation.growth import Layer, TreeGrower
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import FloatArray, IntArray

NUM_PASSES = 5
"""Forward passes behind one fit, as in the paper's section on profiling."""


@dataclass(frozen=True, slots=True)
class FittedCost:
    """Costs of one tree of n nodes in ms, by the paper's curves."""

    draft_slope: float  # λ
    scale: float  # γ
    rate: float  # δ
    power: float  # ρ

    def total(self, nodes: FloatArray) -> FloatArray:
        """C_draft + C_verify of trees with `nodes` [n] nodes. [n]"""
        verify: FloatArray = self.scale * np.expm1(self.rate * nodes**self.power)
        return self.draft_slope * nodes + verify

    def marginal(self, nodes: FloatArray) -> FloatArray:
        """ΔC_spec at `nodes` [n] ≥ 1. [n]"""
        growth = nodes**self.power
        slope = self.scale * self.rate * self.power * growth / nodes * np.exp(self.rate * growth)
        marginal: FloatArray = self.draft_slope + slope
        return marginal


class PaperGrower(TreeGrower):
    """Every tree by itself; no calibration, no re-ranking, no fall-back."""

    def __init__(self, plan: GrowthPlan, num_trees: int) -> None:
        super().__init__(plan, num_trees)
        self._cost = fit_cost(plan, num_trees)
        self._token_ms = plan.verify_knot_ms[0] / num_trees  # c_T, a sequence's share
        assert plan.nodes_per_tree is not None
        self._budget = plan.nodes_per_tree  # B = B_verify / b
        self._kept: list[IntArray] = []
        # Of each tree: nodes, leaves (paths), and Σ over paths of Σ_j P.
        self._nodes = np.zeros(num_trees)
        self._paths = np.ones(num_trees)
        self._path_sums = np.zeros(num_trees)
        # Of each candidate of the newest kept layer, by id: Σ_j P along its path.
        self._sums_by_id: dict[int, float] = {}

    def expand(self, layer: Layer) -> IntArray:
        kept = np.flatnonzero(self._worth(layer))
        self._keep(layer, kept)
        return kept[self._nodes[layer.trees[kept]] < self._budget]

    def choose(self) -> IntArray:
        if len(self._kept) < len(self.layers):
            # The deepest layer is judged like the others, though none of it is expanded.
            layer = self.layers[-1]
            self._keep(layer, np.flatnonzero(self._worth(layer)))
        return np.concatenate(self._kept)

    def _worth(self, layer: Layer) -> NDArray[np.bool_]:
        """Eq. 16 for every candidate of the layer; C_target and C_spec once per layer."""
        nodes, paths = self._nodes[layer.trees], self._paths[layer.trees]
        if len(self.layers) == 1:
            return np.ones(len(layer.trees), np.bool_)
        target = self._token_ms * self._path_sums[layer.trees] / paths
        gain = self._token_ms * layer.draft_probs / paths
        ratio = target / self._cost.total(nodes)
        worth: NDArray[np.bool_] = ALPHA * gain / self._cost.marginal(nodes) > ratio
        return worth

    def _keep(self, layer: Layer, kept: IntArray) -> None:
        """Add the layer's kept candidates to their trees."""
        self._kept.append(layer.first_id + kept)
        trees, parents = layer.trees[kept], layer.parents[kept]
        is_first = len(self.layers) == 1
        before = np.zeros(len(kept))
        if not is_first:
            before = np.asarray([self._sums_by_id[int(parent)] for parent in parents])
        sums = before + layer.draft_probs[kept]
        self._nodes += np.bincount(trees, minlength=self.num_trees)
        # A parent that got children is no leaf any more.
        _, first = np.unique(parents, return_index=True)
        ended = trees[first]
        self._paths += np.bincount(trees, minlength=self.num_trees)
        self._paths -= np.bincount(ended, minlength=self.num_trees)
        self._path_sums += np.bincount(trees, sums, minlength=self.num_trees)
        self._path_sums -= np.bincount(ended, before[first], minlength=self.num_trees)
        ids = (layer.first_id + kept).tolist()
        self._sums_by_id = dict(zip(ids, sums.tolist(), strict=True))


def fit_cost(plan: GrowthPlan, num_trees: int) -> FittedCost:
    """The paper's curves for one of `num_trees` trees, through five measured points."""
    return fit_curve(plan.verify_knots, plan.verify_knot_ms, plan.draft_layer.y[0], num_trees)


@functools.lru_cache(maxsize=64)
def fit_curve(
    knots: tuple[int, ...], knot_ms: tuple[float, ...], layer_ms: float, num_trees: int
) -> FittedCost:
    """Least squares over a grid of (ρ, δ), γ in closed form: the curve is linear in γ."""
    total = np.asarray(knots, np.float64)
    places = np.geomspace(1.0, max(2.0, total[-1] / num_trees), NUM_PASSES)
    measured = np.interp(places * num_trees, total, knot_ms) / num_trees
    powers = np.linspace(0.2, 1.5, 27)[:, None, None]
    rates = np.geomspace(1e-4, 1.0, 41)[None, :, None]
    shape = np.expm1(np.minimum(rates * places**powers, 50.0))
    scales = (shape * measured).sum(-1) / (shape**2).sum(-1)
    errors = ((scales[..., None] * shape - measured) ** 2).sum(-1)
    i, j = np.unravel_index(int(errors.argmin()), errors.shape)
    return FittedCost(
        draft_slope=layer_ms / num_trees,
        scale=float(scales[i, j]),
        rate=float(rates[0, j, 0]),
        power=float(powers[i, 0, 0]),
    )
