"""The choice of a delayed tree for each sequence and step, by a small network over what is known of
the root.

After "Dynamic Delayed Tree Expansion" (arXiv 2602.16994), with the features that are numbers: its
projections of hidden states are left out, so that a selector is a few kilobytes that run in numpy
wherever the drafter does. `smart-serve train-selector` makes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from smart_serve.config import SELECTOR_NODES
from smart_serve.errors import ConfigError
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import FloatArray, IntArray

FILE_NAME = "selector.json"
"""In the drafter's folder."""
LONG_TREE = 8
"""Nodes of the tree by whose price against none the slope of the target's cost is told."""
FEATURES = (
    *("target_entropy", "draft_entropy", "kl_target_draft", "kl_draft_target", "l1"),
    *("log_context", "temperature", "top_p"),
    *("root_entropy", "log_draft_share", "log_tree_price", "log2_batch"),
)
"""The first five are of the last root whose p and q are both known, in nats and in mass; the root's
own q is known when the choice is made, its p is not."""
NUM_PLANNED = 8
"""Features that come with the plan, by tree; the rest is worked out here."""

Layers = tuple[tuple[FloatArray, FloatArray], ...]
"""Weight [in, out] and bias [out] of each."""
Action = tuple[int, int, int]
"""(K, L1, L2): a trunk of L1 tokens, then K branches of L2."""


def all_actions(most_nodes: int = SELECTOR_NODES) -> tuple[Action, ...]:
    """{1..4} × {0..8} × {0..8} up to a size, each tree once: chains are K = 1, L1 first."""
    chains = [(1, min(length, 8), max(length - 8, 0)) for length in range(1, 17)]
    trees = [(k, l1, l2) for k in (2, 3, 4) for l1 in range(9) for l2 in range(1, 9)]
    return tuple(a for a in (*chains, *trees) if num_nodes(a) <= most_nodes)


def num_nodes(action: Action) -> int:
    """The most that such a tree can have."""
    num_branches, trunk, branch = action
    return trunk + num_branches * branch


DEFAULT_ACTION: Action = (1, 4, 0)
"""Where a drafter has no selector: a short chain pays for most pairs."""


def features_of(plan: GrowthPlan, root_laws: FloatArray) -> FloatArray:
    """`FEATURES` of every tree; NaN where nothing is known yet. [B, F]"""
    batch = len(root_laws)
    planned = np.asarray(plan.root_features, np.float64).reshape(-1, NUM_PLANNED)
    logs = np.log(np.where(root_laws > 0.0, root_laws, 1.0))
    verify = plan.verify_ms(plan.max_nodes)
    tree = verify[min(LONG_TREE * batch, plan.max_nodes)] / verify[0]
    prices = (plan.draft_layer(batch) / verify[0], tree)
    own = np.empty((batch, 4))
    own[:, 0] = -(root_laws * logs).sum(axis=1)
    own[:, 1:] = (*np.log(np.maximum(prices, 1e-9)), np.log2(batch))
    return np.concatenate((planned, own), axis=1)


class ShapeChooser(Protocol):
    """What `SelectedGrower` asks."""

    def choose(self, features: FloatArray) -> IntArray:
        """(K, L1, L2) for each row of features [B, F]. [B, 3]"""
        ...


class _Layer(msgspec.Struct, frozen=True):
    weight: list[list[float]]
    bias: list[float]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    features: tuple[str, ...]
    actions: tuple[Action, ...]
    best_static: Action
    center: list[float]
    scale: list[float]
    layers: list[_Layer]


@dataclass(frozen=True)
class Selector:
    """Trained weights; ReLU between layers, the largest output wins."""

    actions: tuple[Action, ...]
    best_static: Action
    """For a root of which too little is known."""
    center: FloatArray  # [F]
    scale: FloatArray  # [F]
    layers: Layers

    def choose(self, features: FloatArray) -> IntArray:
        """(K, L1, L2) for each row of features [B, F]. [B, 3]"""
        is_known = np.isfinite(features.sum(axis=1))
        x = (np.where(is_known[:, None], features, self.center) - self.center) / self.scale
        for number, (weight, bias) in enumerate(self.layers):
            x = (np.maximum(x, 0.0) if number else x) @ weight + bias
        chosen: IntArray = np.asarray(self.actions)[x.argmax(axis=1)]
        chosen[~is_known] = self.best_static
        return chosen

    @staticmethod
    def read(path: Path) -> Selector:
        """Raises `ConfigError` for what is not a selector of this version."""
        try:
            file = msgspec.json.decode(path.read_bytes(), type=_File)
            layers = tuple((np.asarray(la.weight), np.asarray(la.bias)) for la in file.layers)
            center, scale = np.asarray(file.center), np.asarray(file.scale)
            sizes = [len(FEATURES), *(weight.shape[1] for weight, _ in layers)]
            fits = file.features == FEATURES and sizes[-1] == len(file.actions)
            fits = fits and all(
                weight.shape == (rows, len(bias))
                for rows, (weight, bias) in zip(sizes, layers, strict=False)
            )
            fits = fits and {*file.actions, file.best_static} <= {*all_actions()}
        except (OSError, msgspec.MsgspecError, ValueError, IndexError) as error:
            raise ConfigError(f"{path} cannot be read as a selector: {error}") from error
        if not fits or center.shape != scale.shape or center.shape != (len(FEATURES),):
            raise ConfigError(f"{path} was trained for other features or trees: train it again")
        return Selector(file.actions, file.best_static, center, scale, layers)

    def write(self, path: Path) -> None:
        """Six digits are more than the training knows."""

        def short(values: FloatArray) -> list[float]:
            return [float(f"{value:.6g}") for value in values]

        file = _File(
            features=FEATURES,
            actions=self.actions,
            best_static=self.best_static,
            center=short(self.center),
            scale=short(self.scale),
            layers=[_Layer([short(row) for row in w], short(b)) for w, b in self.layers],
        )
        path.write_bytes(msgspec.json.encode(file) + b"\n")
