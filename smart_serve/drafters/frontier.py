"""The rows of a drafter's last pass, and those of the next one below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from smart_serve.drafters.draft_tree import DraftTree
from smart_serve.paging.rows import (
    Ints,
    Rows,
    causal_rows,
    single_bits,
    widened,
    words_for,
)


@dataclass(frozen=True, slots=True)
class Frontier:
    """F rows whose children come next: the roots of T trees, or nodes of one depth."""

    features: torch.Tensor  # [F, f]
    trees: Ints  # [F]
    bits: Ints  # [F, W] `Rows.ancestors` of each row; roots are committed, and have none
    depth: int
    roots: Ints  # [axes, T] positions of the trees' roots

    @staticmethod
    def of_roots(features: torch.Tensor, positions: Ints) -> Frontier:
        """All trees' [T, f], at `positions` [axes, T]."""
        count = len(features)
        return Frontier(features, np.arange(count), np.zeros((count, 1), np.int64), 0, positions)

    def below(
        self, parents: Ints, token_ids: Ints, trees: Sequence[DraftTree]
    ) -> tuple[Rows, Frontier]:
        """Rows of nodes [n], tokens [n] below its rows `parents` [n], tree by tree; and the
        frontier that they will be, but for their features. They count as expanded from now on."""
        owners = self.trees[parents]
        first_rows = np.concatenate(
            ([0], np.flatnonzero(owners[1:] != owners[:-1]) + 1, [len(owners)])
        )
        lengths = first_rows[1:] - first_rows[:-1]
        own = [trees[owner] for owner in owners[first_rows[:-1]].tolist()]
        before = np.array([tree.num_expanded for tree in own])
        for tree, length in zip(own, lengths.tolist(), strict=True):
            tree.num_expanded += length
        committed = np.array([tree.held.num_rows for tree in own])
        # Nodes are numbered on from those of their tree that were expanded before.
        numbers = np.arange(len(owners)) + np.repeat(before - first_rows[:-1], lengths)
        words = words_for(int(numbers.max()) + 1)
        bits = widened(self.bits, words)[parents] | single_bits(numbers, words)
        rows = Rows(
            blocks=[tree.held.blocks for tree in own],
            first_rows=first_rows,
            num_committed=committed,
            num_slots=committed + before + lengths,
            token_ids=token_ids,
            positions=self.roots[:, owners] + self.depth + 1,
            prefixes=np.repeat(committed, lengths),
            ancestors=bits,
        )
        return rows, Frontier(self.features, owners, bits, self.depth + 1, self.roots)

    def picked(self, rows: Ints, features: torch.Tensor) -> Frontier:
        """Its `rows` [n] in that order, with these features."""
        return replace(self, features=features, trees=self.trees[rows], bits=self.bits[rows])


def committed_rows(trees: Sequence[DraftTree]) -> Rows:
    """The newly committed rows of each tree."""
    positions = None
    if trees[0].positions is not None:
        positions = np.concatenate([t.positions for t in trees if t.positions is not None], axis=1)
    return causal_rows(
        blocks=[tree.held.blocks for tree in trees],
        num_committed=np.array([tree.held.num_rows for tree in trees]),
        lengths=np.array([len(tree.token_ids) for tree in trees]),
        token_ids=np.concatenate([tree.token_ids for tree in trees]),
        positions=positions,
    )
