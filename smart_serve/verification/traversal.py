"""Traversal verification: from the leaves up, so that a whole path is judged before its parts.

    a(root) = 1; a(x) = min(1, a(c) p_c(x) / q_c(x)) for a child x of c
    take the leftmost leaf v, children in the order of their draws:
      v is the root, or u < a(v): accept the path to v, bonus ~ p_v
      else, with c the parent of v and S = Σ (a(c) p_c − q_c)+:
        p_c ← (a(c) p_c − q_c)+ / S;  a(c) ← S / (S + 1 − a(c));  q_c(v) ← 0, q_c ← norm(q_c)
        delete v, and compute a again below c

Weng and others, "Traversal Verification for Speculative Tree Decoding", arXiv 2505.12398,
algorithm 3. On one path it is block verification. Siblings must have been drawn from q_c without
replacement in this order; independent draws, taken at their first occurrence, are.

The leftmost leaf of what is left is the next node in post-order, so shapes alone say when each
node is judged. a(v) is needed from when the descent enters v, after its elder siblings were
deleted and before its children are judged; it is computed then, and never again from above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from smart_serve.speculation.tree import IntArray
from smart_serve.verification.chooser import Chooser
from smart_serve.verification.descent import normalised
from smart_serve.verification.sampled_trees import Rows, SampledTrees, Verdict


@dataclass(frozen=True, slots=True)
class _Visit:
    """One step of all trees: which nodes the descent enters, top-down, and which is judged."""

    entered: tuple[IntArray, ...]  # rows, one array per depth
    judged: IntArray  # [B] row; a tree without nodes left has its root here


def traversal(trees: SampledTrees, chooser: Chooser) -> Verdict:
    """All trees judge one node at a time, together."""
    p, q = trees.p_target.clone(), trees.p_draft.clone()
    accept = torch.ones(len(p), dtype=torch.float64, device=p.device)
    last = trees.roots
    is_done = torch.zeros_like(last, dtype=torch.bool)
    for number, visit in enumerate(_visits(trees), start=1):
        for entered in visit.entered:
            row = torch.from_numpy(entered).to(p.device)
            at = (trees.parents[row], trees.token_ids[row])
            ratio = p[at] / torch.where(q[at] > 0, q[at], 1.0)
            accept[row] = (accept[at[0]] * ratio).clamp(max=1.0)
        row = torch.from_numpy(visit.judged).to(p.device)
        is_node = row != trees.roots
        probs = torch.where(is_node & ~is_done, accept[row], 0.0)
        is_accepted = chooser.bernoulli(probs, number)
        last = torch.where(is_accepted, row, last)
        is_done = is_done | is_accepted
        _reject(p, q, accept, trees.parents[row], trees.token_ids[row], is_node)
    return Verdict(last, chooser.categorical(p[last], 0))


def _reject(
    p: torch.Tensor,
    q: torch.Tensor,
    accept: torch.Tensor,
    parent: torch.Tensor,
    token: torch.Tensor,
    is_node: torch.Tensor,
) -> None:
    """What is left at `parent` [B] after its child `token` [B] was deleted, where `is_node`. In a
    tree that is done already nobody reads it."""
    p_c, q_c, a_c = p[parent], q[parent], accept[parent]
    surplus = (a_c.unsqueeze(1) * p_c - q_c).clamp(min=0)
    total = surplus.sum(dim=1)
    slack = total + 1.0 - a_c
    left = torch.where(slack > 0, total / torch.where(slack > 0, slack, 1.0), 0.0)
    others = normalised(q_c.scatter(1, token.clamp(min=0).unsqueeze(1), 0.0), otherwise=q_c)
    keep = is_node.unsqueeze(1)
    p[parent] = torch.where(keep, normalised(surplus, otherwise=p_c), p_c)
    q[parent] = torch.where(keep, others, q_c)
    accept[parent] = torch.where(is_node, left, a_c)


def _visits(trees: SampledTrees) -> list[_Visit]:
    """Post-order with children in the order of their first draws."""
    rows, sizes = trees.rows, np.diff(np.append(trees.rows.roots, len(trees.rows.parents))) - 1
    entered_at, judged_at = _times(rows, rows.nodes[trees.draws.nodes])
    judged = np.repeat(rows.roots[None], int(sizes.max(initial=0)), axis=0)
    judged[judged_at[rows.nodes], np.repeat(np.arange(len(sizes)), sizes)] = rows.nodes
    order = rows.nodes[np.lexsort((rows.depths[rows.nodes], entered_at[rows.nodes]))]
    keys = entered_at[order] * (len(trees.widths) + 1) + rows.depths[order]
    groups = np.split(order, np.flatnonzero(np.diff(keys)) + 1) if len(order) else []
    entered: list[list[IntArray]] = [[] for _ in judged]
    for group in groups:
        entered[int(entered_at[group[0]])].append(group)
    return [_Visit(tuple(e), j) for e, j in zip(entered, judged, strict=True)]


def _times(rows: Rows, drawn: IntArray) -> tuple[IntArray, IntArray]:
    """How many nodes of its tree are judged before each row is entered, and before it is judged
    itself; both [R].

    The n-th node in pre-order, at depth d, is entered when n − d nodes are finished: all before it
    but its d − 1 ancestors below the root, itself left out.
    """
    size = np.ones_like(rows.parents)
    by_depth = [rows.nodes[rows.depths[rows.nodes] == d] for d in range(1, rows.depths.max() + 1)]
    for nodes in reversed(by_depth):
        np.add.at(size, rows.parents[nodes], size[nodes])
    first = np.zeros_like(size)
    first[drawn[::-1]] = np.arange(len(drawn))[::-1]
    before = np.zeros_like(size)
    for nodes in by_depth:
        nodes = nodes[np.lexsort((first[nodes], rows.parents[nodes]))]
        parents, sums = rows.parents[nodes], np.cumsum(size[nodes])
        start = np.searchsorted(parents, parents)
        elder = sums - size[nodes] - (sums[start] - size[nodes][start])
        before[nodes] = before[parents] + elder + 1
    entered_at: IntArray = before - rows.depths
    return entered_at, entered_at + size - 1
