"""Draft trees whose nodes were drawn from the drafter's distribution, as verification rules see
them: packed rows on the device, the root of every tree first.

A node may have been drawn more than once among its siblings; it is verified as one row, and every
one of its draws counts. Node c that was drawn m times has m draws of each of its own children's
paths, as the m paths through it were drawn independently.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from smart_serve.speculation.growth import rank_in_runs
from smart_serve.speculation.tree import Forest, IntArray


@dataclass(frozen=True, slots=True)
class Draws:
    """What was drawn, in order."""

    forest: Forest
    nodes: IntArray  # [D] index in the forest of every draw; siblings in the order of their draws
    with_replacement: bool
    """False: a node's children were drawn one after the other from what was left."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The packed rows of a forest, on the host: R = B + nodes."""

    roots: IntArray  # [B]
    nodes: IntArray  # [M] row of each node
    parents: IntArray  # [R] a root is its own
    token_ids: IntArray  # [R] -1 for roots
    depths: IntArray  # [R]

    @staticmethod
    def of(forest: Forest) -> Rows:
        trees = np.repeat(np.arange(forest.num_trees), forest.sizes)
        roots = forest.offsets[:-1] + np.arange(forest.num_trees)
        nodes = np.arange(forest.num_nodes) + trees + 1
        parents = np.arange(forest.num_nodes + forest.num_trees)
        token_ids, depths = np.full_like(parents, -1), np.zeros_like(parents)
        parents[nodes] = roots[trees] + forest.parents
        token_ids[nodes], depths[nodes] = forest.token_ids, forest.depths
        return Rows(roots, nodes, parents, token_ids, depths)


@dataclass(frozen=True, slots=True)
class SampledTrees:
    """B trees of R rows in all, with the distributions after every row, in float64.

    `p_target` is after temperature, penalties and cuts, and adds up to 1; `p_draft` is the law that
    the children were drawn from (its rows of leaves are not read).
    """

    p_target: torch.Tensor  # [R, V]
    p_draft: torch.Tensor  # [R, V]
    roots: torch.Tensor  # [B]
    parents: torch.Tensor  # [R] a root is its own
    token_ids: torch.Tensor  # [R] -1 for roots
    children: torch.Tensor  # [R, K] row of each draw after a row, in order; -1: none
    widths: tuple[int, ...]
    """Per depth, the most draws after any node."""
    rows: Rows
    draws: Draws

    @staticmethod
    def of(draws: Draws, p_target: torch.Tensor, p_draft: torch.Tensor) -> SampledTrees:
        rows = Rows.of(draws.forest)
        drawn = rows.nodes[draws.nodes]
        by_parent = np.argsort(rows.parents[drawn], kind="stable")
        drawn = drawn[by_parent]
        parents = rows.parents[drawn]
        ranks = rank_in_runs(parents)
        table = np.full((len(rows.parents), int(ranks.max(initial=-1)) + 1), -1, np.int64)
        table[parents, ranks] = drawn
        widths = np.zeros(int(rows.depths.max(initial=0)) + 1, np.int64)
        np.maximum.at(widths, rows.depths[parents], ranks + 1)
        roots, parent_rows, tokens, children = (
            torch.from_numpy(column).to(p_target.device)
            for column in (rows.roots, rows.parents, rows.token_ids, table)
        )
        return SampledTrees(
            p_target=p_target,
            p_draft=p_draft,
            roots=roots,
            parents=parent_rows,
            token_ids=tokens,
            children=children,
            widths=tuple(widths.tolist()),
            rows=rows,
            draws=draws,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where each tree's walk ended, and the token that follows."""

    last: torch.Tensor  # [B] row of the last accepted node, or of the root
    bonus: torch.Tensor  # [B]

    def drawn(self, trees: SampledTrees) -> torch.Tensor:
        """The target's token after every row on an accepted path, else -1: what `match` has to be
        given to walk the same way. [R]"""
        drawn = torch.full_like(trees.token_ids, -1)
        drawn[self.last] = self.bonus
        row = self.last
        for _ in trees.widths[1:]:
            parent = trees.parents[row]
            # A root is its own parent, and keeps what it has.
            drawn[parent] = torch.where(parent == row, drawn[row], trees.token_ids[row])
            row = parent
        return drawn
