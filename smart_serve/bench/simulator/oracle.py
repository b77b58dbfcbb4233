"""What could have been had: each step's best tree, chosen knowing every node's true acceptance.

It looks at what the target will say, so a policy hardly reaches it; the distance tells where
something is left to gain.
"""

from __future__ import annotations

import functools

import numpy as np

from smart_serve.bench.simulator.drafter import SyntheticDrafter
from smart_serve.bench.simulator.simulation import HOST_MS, Setting
from smart_serve.speculation.growth import top_per_tree
from smart_serve.speculation.tree import FloatArray

WIDTHS = (1, 2, 4, 8)
"""Expanded nodes per tree and layer that it chooses from."""
CHILDREN = 4
"""Of one node; a fifth one is hardly ever taken."""
MOST_NODES = 1024
"""Of one step."""


class Oracle:
    """The best of plain decoding and of trees of every depth, width and size."""

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        self._setting = setting
        self._drafter = SyntheticDrafter(setting.skill, np.random.default_rng(seed))

    def tokens_per_ms(self, batch: int) -> float:
        """Of one step of `batch` sequences, without noise; the drafter is always caught up."""
        self._drafter.resize(batch)
        verify_ms = _verify_ms(self._setting, batch)
        best = batch / float(verify_ms[0])
        for width in WIDTHS:
            spent = self._setting.wire_ms
            layers = self._layers(batch, width)
            for depth in range(1, len(layers) + 1):
                rows = batch if depth == 1 else batch * width
                spent += self._setting.machine.draft_layer_ms(
                    rows, rows, batch, self._setting.context
                )
                probs = -np.sort(-np.concatenate(layers[:depth]))[:MOST_NODES]
                tokens = batch + np.cumsum(probs)
                best = max(best, float((tokens / (spent + verify_ms[1 : len(probs) + 1])).max()))
        return best

    def _layers(self, batch: int, width: int) -> list[FloatArray]:
        """Per depth, the true path probabilities of all candidates."""
        sequences, paths = np.arange(batch), np.ones(batch)
        layers = []
        for _ in range(self._setting.config.max_depth):
            found = self._drafter.children(sequences, CHILDREN)
            candidates = (paths[:, None] * found.acceptance).reshape(-1)
            layers.append(candidates)
            owners = np.repeat(sequences, CHILDREN)
            kept = top_per_tree(owners, candidates, width)
            sequences, paths = owners[kept], candidates[kept]
        return layers


@functools.lru_cache(maxsize=8)
def _verify_ms(setting: Setting, batch: int) -> FloatArray:
    """With 0..MOST_NODES draft nodes, host time included."""
    machine, context = setting.machine, setting.context
    times = [machine.verify_ms(batch + n, batch, context) for n in range(MOST_NODES + 1)]
    return np.asarray(times) + HOST_MS
