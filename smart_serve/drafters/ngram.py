"""Prompt lookup: what followed earlier occurrences of the sequence's own last tokens.

No weights and no tensors. After prompt lookup decoding (github.com/apoorvumang) as transformers and
vLLM have it, with trees: the earlier occurrences vote on what comes next.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from smart_serve.drafters.protocol import (
    DraftBatch,
    DrafterInfo,
    DraftInput,
    Outcome,
    Proposal,
    one_by_one,
)
from smart_serve.drafters.suffix_index import Match, SuffixIndex
from smart_serve.drafters.text_only import without_images
from smart_serve.paging.rows import Ints
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.policies import make_grower
from smart_serve.speculation.tree import FloatArray, Forest

# Chosen so that shares can be read as probabilities: over this project's README and engine.py, word
# by word, proposals with shares of 0.3, 0.5, 0.7 and 0.9 were right in 17, 41, 71 and 85 of 100.
LENGTH_BASE = 2.0
"""One more matching token doubles an occurrence's vote."""
RECENCY_DECAY = 0.9
"""An occurrence's vote, for each more recent one: what was just said is said again."""
DOUBT = 4.0
"""The vote for something new: that of a fresh match of two tokens."""


@dataclass(slots=True)
class _Held:
    index: SuffixIndex
    next_start: int = 0


@dataclass(frozen=True, slots=True)
class _Node:
    """A tree node: the occurrences that agree with the path down to it."""

    tokens: list[int]
    matches: list[Match]  # `next` is where each goes on

    def children(self) -> list[tuple[float, int, list[Match]]]:
        """(share of the votes, token, the occurrences that agree), best first."""
        votes: dict[int, float] = {}
        agreeing: dict[int, list[Match]] = {}
        total, recency = DOUBT, 1.0
        for match in self.matches:
            if match.next < len(self.tokens):
                token = self.tokens[match.next]
                vote = recency * LENGTH_BASE**match.length
                votes[token] = votes.get(token, 0.0) + vote
                further = Match(match.next + 1, match.length + 1)
                agreeing.setdefault(token, []).append(further)
                total += vote
                recency *= RECENCY_DECAY
        shares = [(vote / total, token, agreeing[token]) for token, vote in votes.items()]
        return sorted(shares, key=lambda share: -share[0])


class NgramDrafter:
    """Holds each sequence's tokens, `max_tokens` in all; image tokens are left out."""

    def __init__(self, image_token_id: int | None, *, max_tokens: int) -> None:
        self._image_token_id = image_token_id
        self._room = max_tokens
        self._held: dict[int, _Held] = {}
        self._info = DrafterInfo("ngram", "none", None, (), Curve((1.0,), (0.0,)))

    @property
    def info(self) -> DrafterInfo:
        return self._info

    def set_layer_cost(self, layer_cost: Curve) -> None:
        """Measured on this machine (see `drafters.measure`)."""
        self._info = replace(self._info, layer_cost=layer_cost)

    @property
    def free_tokens(self) -> int:
        return self._room

    def close(self, sequence_ids: Sequence[int]) -> None:
        for sequence_id in sequence_ids:
            held = self._held.pop(sequence_id, None)
            if held is not None:
                self._room += len(held.index.tokens)

    def propose(self, batch: DraftBatch) -> Proposal:
        clock = time.perf_counter()
        roots = [self._catch_up(item) for item in batch.inputs]
        known = [i for i, root in enumerate(roots) if root is not None]
        unknown = tuple(i for i, root in enumerate(roots) if root is None)
        frontier = [root for root in roots if root is not None]
        if not frontier:
            return Proposal(Growth(Forest.empty(len(roots)), (), ()), unknown)
        rows = sum(len(batch.inputs[i].token_ids) for i in known)
        grower = make_grower(batch.growth.of_trees(known), len(frontier))
        layer_ms, layer_rows = [], []
        while frontier:
            token_ids, log_probs, nodes = _layer(frontier, batch.growth.top_k)
            layer_rows.append(rows)
            layer_ms.append(1e3 * (time.perf_counter() - clock))
            chosen = grower.add_layer(token_ids, log_probs)
            frontier, clock = [nodes[i] for i in chosen.tolist()], time.perf_counter()
            rows = len(frontier)
        growth = grower.finish().spread(len(roots), known)
        return Proposal(growth, unknown, tuple(layer_ms), tuple(layer_rows))

    def propose_together(self, batches: Sequence[DraftBatch]) -> Iterator[tuple[int, Outcome]]:
        return one_by_one(self, batches)

    def _catch_up(self, item: DraftInput) -> _Node | None:
        """The root, or None: the sequence is not held up to `start`, or there is no room."""
        if item.start == 0:
            self.close([item.sequence_id])
            self._held[item.sequence_id] = _Held(SuffixIndex())
        held = self._held.get(item.sequence_id)
        if held is None or held.next_start != item.start or len(item.token_ids) == 0:
            return None
        token_ids = without_images(item.token_ids, self._image_token_id)
        if len(token_ids) > self._room:
            self.close([item.sequence_id])
            return None
        self._room -= len(token_ids)
        held.index.extend(token_ids.tolist())
        held.next_start += len(item.token_ids)
        return _Node(held.index.tokens, held.index.matches())


def _layer(frontier: list[_Node], top_k: int) -> tuple[Ints, FloatArray, dict[int, _Node]]:
    """Children of the frontier [F, k], padded with ones of no probability, and their nodes by
    their place in the flattened [F * k]."""
    token_ids = np.zeros((len(frontier), top_k), np.int64)
    log_probs = np.full((len(frontier), top_k), -np.inf)
    nodes: dict[int, _Node] = {}
    for row, node in enumerate(frontier):
        for column, (share, token, matches) in enumerate(node.children()[:top_k]):
            token_ids[row, column], log_probs[row, column] = token, np.log(share)
            nodes[row * top_k + column] = _Node(node.tokens, matches)
    return token_ids, log_probs, nodes
