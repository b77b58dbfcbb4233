"""Growing the draft trees of a step, layer by layer, from any drafting loop.

grower = make_grower(plan, num_trees)
frontier = roots
while len(frontier):
    token_ids, log_probs = top-k children of every frontier node        # the drafter's forward
    frontier = grower.add_layer(token_ids, log_probs)                    # which to expand next
growth = grower.finish()                                                 # what to verify
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from smart_serve.speculation.calibration import acceptance
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import PROBABILITY_SLACK, FloatArray, Forest, IntArray


@dataclass(frozen=True)
class Frontier:
    """The F nodes whose children come next; at first the roots."""

    trees: IntArray  # [F]
    ids: IntArray  # [F] among all candidates; of roots: their trees
    path_probs: FloatArray  # [F]
    chosen: tuple[Layer, IntArray] | None
    """The layer that they are of, and where in it; None: roots."""

    @cached_property
    def draft_probs(self) -> FloatArray:
        """Product of raw confidences along the path. [F]"""
        if self.chosen is None:
            return np.ones(len(self.trees))
        layer, places = self.chosen
        return layer.draft_probs[places]


@dataclass(frozen=True)
class Layer:
    """All candidates of one depth. Ids count candidates over all layers, in order."""

    first_id: int
    frontier: Frontier
    """Their parents."""
    token_ids: IntArray  # [n]
    confidences: FloatArray  # [n]
    path_probs: FloatArray  # [n] calibrated
    width: int
    """Children of each parent, best first."""

    # Worked out when asked for: not every policy does, and it is done for every layer.

    @cached_property
    def trees(self) -> IntArray:
        """Tree of each candidate. [n]"""
        return np.repeat(self.frontier.trees, self.width)

    @cached_property
    def parents(self) -> IntArray:
        """Id of the parent candidate; for children of a root, its tree. [n]"""
        return np.repeat(self.frontier.ids, self.width)

    @cached_property
    def draft_probs(self) -> FloatArray:
        """The same for each candidate. [n]"""
        return np.repeat(self.frontier.draft_probs, self.width) * self.confidences

    @property
    def best_trees(self) -> IntArray:
        """Trees of each parent's `PROFILE_WIDTH` best children. [m]"""
        return np.repeat(self.frontier.trees, min(self.width, PROFILE_WIDTH))

    @property
    def best_path_probs(self) -> FloatArray:
        """The same children's path probabilities. [m]"""
        return self.path_probs.reshape(-1, self.width)[:, :PROFILE_WIDTH].reshape(-1)


@dataclass(frozen=True, slots=True)
class Growth:
    """Trees to verify, and what growing them taught about the drafter."""

    forest: Forest
    best_by_depth: tuple[tuple[float, ...], ...]
    """Per opened depth, the mean over trees of the largest path probabilities, in order. Empty, as
    `child_mass`, where the plan did not ask for it."""
    child_mass: tuple[float, ...]
    """Per opened depth, the share of an expanded parent's probability that its best child keeps."""
    policy_ms: float = 0.0
    """Wall clock that the policy took; 0 where the trees were grown in another process."""
    laws: DraftLaws | None = None
    """Of trees that were drawn."""
    considered: Forest | None = None
    """The same trees with the `MAX_PRUNED` best candidates of each that are not to be verified; for
    plans that ask."""

    def spread(self, num_trees: int, places: Sequence[int]) -> Growth:
        """The same trees at `places` (increasing) among `num_trees`; the others are empty."""
        laws = None if self.laws is None else self.laws.spread(places)
        considered = None if self.considered is None else self.considered.spread(num_trees, places)
        forest = self.forest.spread(num_trees, places)
        return replace(self, forest=forest, laws=laws, considered=considered)

    def problem(self, max_depth: int) -> str | None:
        """Why nothing must be learnt from the profile, or None (the forest has its own check)."""
        if max(len(self.best_by_depth), len(self.child_mass)) > max_depth:
            return "a profile deeper than the trees may be"
        if any(len(row) != PROFILE_WIDTH for row in self.best_by_depth):
            return "a profile of another width"
        values = [*self.child_mass, *(value for row in self.best_by_depth for value in row)]
        if not all(0.0 <= value <= 1.0 + PROBABILITY_SLACK for value in values):
            return "a profile outside 0 to 1"
        return None


PROFILE_WIDTH = 4
"""Candidates per depth that the profile keeps; a fifth one seldom holds 1 % of the mass."""
MAX_PRUNED = 16
"""What a picture of a tree has room for."""


class TreeGrower(ABC):
    """Holds the candidates of all layers; a policy says what to expand and what to verify."""

    def __init__(self, plan: GrowthPlan, num_trees: int) -> None:
        self.plan = plan
        self.num_trees = num_trees
        self.layers: list[Layer] = []
        self.child_mass: list[float] = []
        self._policy_s = 0.0
        roots = np.arange(num_trees)
        self._frontier = Frontier(roots, roots, np.ones(num_trees), None)

    @property
    def num_candidates(self) -> int:
        return self.layers[-1].first_id + len(self.layers[-1].token_ids) if self.layers else 0

    def add_layer(self, token_ids: IntArray, log_probs: FloatArray) -> IntArray:
        """Children of every frontier node, both [F, k], best first; those beyond what a drafter
        has to offer have log-probability -inf, and are neither expanded nor verified.

        Returns indices into the flattened [F * k] of those to expand in the next layer; none: the
        trees are grown. The first frontier is the roots, later ones are what was returned.
        """
        clock = time.perf_counter()
        chosen = self._chosen(self._layer(token_ids, log_probs))
        self._policy_s += time.perf_counter() - clock
        return chosen

    def _chosen(self, layer: Layer) -> IntArray:
        self.layers.append(layer)
        if len(self.layers) >= self.plan.max_depth:
            return np.empty(0, np.int64)
        chosen = self.expand(layer)
        chosen = chosen[layer.confidences[chosen] > 0.0]
        for token in self.plan.terminal_tokens:
            chosen = chosen[layer.token_ids[chosen] != token]
        parents = chosen // layer.width
        self._frontier = Frontier(
            trees=layer.frontier.trees[parents],
            ids=layer.first_id + chosen,
            path_probs=layer.path_probs[chosen],
            chosen=(layer, chosen),
        )
        return chosen

    def finish(self) -> Growth:
        """The trees to verify."""
        clock = time.perf_counter()
        chosen = self._offered() if self.layers else np.empty(0, np.int64)
        forest = self._forest(chosen) if self.layers else self._nothing()
        profile = self._profile()
        policy_ms = 1e3 * (self._policy_s + time.perf_counter() - clock)
        considered = self._considered(chosen) if self.plan.traced and self.layers else None
        return Growth(forest, profile, tuple(self.child_mass), policy_ms, considered=considered)

    def _considered(self, chosen: IntArray) -> Forest:
        others = np.setdiff1d(np.flatnonzero(self.column("confidences") > 0.0), chosen)
        # A parent is no less likely than its children, and comes before them: these are trees.
        trees, path_probs = self.column("trees")[others], self.column("path_probs")[others]
        pruned = others[top_per_tree(trees, path_probs, MAX_PRUNED)]
        return self._forest(np.union1d(chosen, pruned))

    def _offered(self) -> IntArray:
        """What is chosen, without the padding of drafters that had less to offer."""
        chosen = np.sort(self.choose())
        offered: IntArray = chosen[self.column("confidences")[chosen] > 0.0]
        return offered

    @abstractmethod
    def expand(self, layer: Layer) -> IntArray:
        """Indices within `layer`, the newest, of the candidates to expand; may be empty."""

    @abstractmethod
    def choose(self) -> IntArray:
        """Ids of the candidates to verify, over all layers; closed under parents."""

    def profiled(self, number: int) -> tuple[IntArray, FloatArray]:
        """Trees and path probabilities of a layer's candidates that the profile is about."""
        # Children come best first: what is not among its parent's best is not among its tree's.
        return self.layers[number].best_trees, self.layers[number].best_path_probs

    def column(self, name: str) -> Any:
        """One field of all layers' candidates, by id: an array of ints or floats."""
        return np.concatenate([getattr(layer, name) for layer in self.layers])

    def _layer(self, token_ids: IntArray, log_probs: FloatArray) -> Layer:
        width = token_ids.shape[1]
        flat = np.exp(log_probs, dtype=np.float64).reshape(-1)
        calibrated = acceptance(self.plan.calibration, len(self.layers) + 1, flat)
        calibrated *= flat > 0.0
        reached = self._frontier.path_probs
        path_probs = calibrated.reshape(-1, width) * reached[:, None]
        if self.plan.is_watched:
            mass = float(reached.sum())
            self.child_mass.append(float(path_probs[:, 0].sum()) / max(mass, 1e-12))
        return Layer(
            first_id=self.num_candidates,
            frontier=self._frontier,
            token_ids=token_ids.reshape(-1),
            confidences=flat,
            path_probs=path_probs.reshape(-1),
            width=width,
        )

    def _forest(self, ids: IntArray) -> Forest:
        """Flat trees of the candidates `ids` (increasing, so parents come first)."""
        ids, offsets, row_of = self._rows(ids)
        depths = np.repeat(
            np.arange(1, len(self.layers) + 1), [len(layer.token_ids) for layer in self.layers]
        )[ids]
        parents = self.column("parents")[ids]
        # A first-layer candidate's parent is its tree's root, row 0.
        rows = np.where(depths == 1, 0, row_of[np.where(depths == 1, 0, parents)])
        return Forest(
            offsets=offsets,
            token_ids=self.column("token_ids")[ids].astype(np.int64),
            parents=rows,
            depths=depths.astype(np.int64),
            confidences=self.column("confidences")[ids],
            path_probs=self.column("path_probs")[ids],
        )

    def _rows(self, ids: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """`ids` tree by tree, the trees' offsets in them, and each candidate's row in its tree."""
        trees = self.column("trees")[ids]
        order = np.argsort(trees, kind="stable")
        ids, trees = ids[order], trees[order]
        offsets = np.zeros(self.num_trees + 1, np.int64)
        np.cumsum(np.bincount(trees, minlength=self.num_trees), out=offsets[1:])
        row_of = np.zeros(self.num_candidates, np.int64)
        row_of[ids] = np.arange(len(ids)) - offsets[trees] + 1
        return ids, offsets, row_of

    def _nothing(self) -> Forest:
        return Forest.empty(self.num_trees)

    def _profile(self) -> tuple[tuple[float, ...], ...]:
        if not self.layers or not self.plan.is_watched:
            return ()
        num_layers = len(self.layers)
        trees, path_probs = zip(
            *(self.profiled(number) for number in range(num_layers)), strict=True
        )
        layers = np.repeat(np.arange(num_layers), [len(one) for one in trees])
        groups = layers * self.num_trees + np.concatenate(trees)
        probs = np.concatenate(path_probs)
        order = np.lexsort((-probs, groups))
        ranks = rank_in_runs(groups[order])
        best, ranks = order[ranks < PROFILE_WIDTH], ranks[ranks < PROFILE_WIDTH]
        places = layers[best] * PROFILE_WIDTH + ranks
        sums = np.bincount(places, probs[best], minlength=num_layers * PROFILE_WIDTH)
        rows = (sums / self.num_trees).reshape(num_layers, PROFILE_WIDTH)
        return tuple(tuple(row) for row in rows.tolist())


def rank_in_runs(sorted_keys: IntArray) -> IntArray:
    """Position of each element within its run of equal keys. [n]"""
    first = np.searchsorted(sorted_keys, sorted_keys, side="left")
    ranks: IntArray = np.arange(len(sorted_keys)) - first
    return ranks


def top_per_tree(trees: IntArray, scores: FloatArray, k: int) -> IntArray:
    """Indices of the k best scores of every tree, ties to the earlier index."""
    order = np.lexsort((-scores, trees))
    chosen: IntArray = np.sort(order[rank_in_runs(trees[order]) < k])
    return chosen
