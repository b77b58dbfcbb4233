"""Policy `adaptive-chain`: one path per sequence, as long as measured goodput says.

    K = argmax_k (1 + Σ_{i ≤ k} a_i) / (drafting of k tokens + verify(b (1 + k)))

with a_i the share of recent drafts whose i-th token was accepted and K = 0 plain decoding: the rule
of vLLM's dynamic speculation (`manager.py`) and of SGLang's throughput-aware controller. One length
for the whole batch, and no look at this step's confidences.
"""

from __future__ import annotations

import msgspec.structs
import numpy as np
from numpy.typing import NDArray

from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import Forest

DECAY = 0.95
"""Per step: the memory is about twenty of them (SGLang's window)."""
PRIOR_WEIGHT = 1.0
"""Drafts that the position before counts for where a position was hardly seen."""
FIRST_ACCEPTANCE = 0.8
"""Before anything was seen: hopeful enough to try."""
LOOK_EVERY = 64
"""Plain steps between two with one drafted token, for acceptance is not seen otherwise."""


class AdaptiveChain:
    """Per-position acceptance and the length that follows from it. Owned by one controller."""

    def __init__(self, max_length: int) -> None:
        self._seen = np.zeros(max_length)
        self._accepted = np.zeros(max_length)
        self._plain_steps = 0

    def observe(self, forest: Forest, accepted: NDArray[np.bool_]) -> None:
        """Of chains: how many reached each depth, and how many of these were accepted there."""
        self._seen *= DECAY
        self._accepted *= DECAY
        length = len(self._seen)
        hits = np.bincount(forest.depths[accepted] - 1, minlength=length)[:length]
        drafted = np.bincount(forest.depths - 1, minlength=length)[:length]
        # A position counts where the one before it was accepted.
        self._seen += np.minimum(drafted, np.concatenate(([forest.num_trees], hits[:-1])))
        self._accepted += hits

    def plan(self, plan: GrowthPlan, batch: int, catch_up_rows: int) -> GrowthPlan | None:
        """The step's chains, or None: decode plainly."""
        length = self._best_length(plan, batch, catch_up_rows)
        if length == 0:
            self._plain_steps += 1
            if self._plain_steps < LOOK_EVERY:
                return None
            length = 1
        self._plain_steps = 0
        return msgspec.structs.replace(
            plan, max_depth=length, nodes_per_tree=length, max_nodes=batch * length
        )

    def _best_length(self, plan: GrowthPlan, batch: int, catch_up_rows: int) -> int:
        lengths = np.arange(len(self._seen) + 1)
        tokens = 1.0 + np.concatenate(([0.0], np.cumsum(self._acceptance())))
        first = plan.wire_ms + plan.draft_layer(max(catch_up_rows, 1))
        drafting = np.where(lengths > 0, first + (lengths - 1) * plan.draft_layer(batch), 0.0)
        verify = np.interp(batch * lengths, plan.verify_knots, plan.verify_knot_ms)
        return int((tokens / (drafting + verify)).argmax())

    def _acceptance(self) -> list[float]:
        """a_i: the chance that all of the first i tokens are accepted."""
        each, path, paths = FIRST_ACCEPTANCE, 1.0, []
        for seen, accepted in zip(self._seen, self._accepted, strict=True):
            each = float((accepted + PRIOR_WEIGHT * each) / (seen + PRIOR_WEIGHT))
            path *= each
            paths.append(path)
        return paths
