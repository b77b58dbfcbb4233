"""Walk every draft tree along the target's own tokens (sample-and-match, longest match at T = 0).

From the root: if the token drawn after the row where the walk stands is one of that row's children,
go there; else it is the bonus token and the walk ends (Miao and others, "SpecInfer", arXiv
2305.09781, for greedy trees; `smart_serve.verification.match` says why it is lossless when drawn).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Walk:
    """Where the walks through B trees ended; int64."""

    paths: torch.Tensor  # [B, D] accepted rows within the tree, from the root down; then zeros
    lengths: torch.Tensor  # [B] of the paths
    bonus: torch.Tensor  # [B]


def verify(
    drawn: torch.Tensor,
    offsets: torch.Tensor,
    parents: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    max_nodes: int,
    max_depth: int,
) -> Walk:
    """drawn [M + B]: the target's token after each tree's root and then after its nodes. offsets
    [B + 1], parents and token_ids [M] as in a `Forest`. No tree has more than `max_nodes` nodes or
    is deeper than `max_depth`. Of two children with one token the later one is taken."""
    if drawn.is_cuda:
        from kernels.gpu.verify import walk

        return Walk(*walk(drawn, offsets, parents, token_ids, max_nodes, max_depth))
    found = list(_walks(drawn.tolist(), offsets.tolist(), parents.tolist(), token_ids.tolist()))
    padded = [path + [0] * (max_depth - len(path)) for path, _ in found]
    ends = [(len(path), bonus) for path, bonus in found]
    lengths, bonus = torch.tensor(ends, dtype=torch.int64).view(-1, 2).T
    paths = torch.tensor(padded, dtype=torch.int64).view(len(found), max_depth)
    return Walk(paths, lengths, bonus)


def _walks(
    drawn: list[int], offsets: list[int], parents: list[int], token_ids: list[int]
) -> Iterator[tuple[list[int], int]]:
    """The accepted rows and the bonus token of each tree. Plain numbers: most trees are small."""
    for tree, (begin, end) in enumerate(itertools.pairwise(offsets)):
        edges = zip(parents[begin:end], token_ids[begin:end], strict=True)
        children = {edge: row for row, edge in enumerate(edges, start=1)}
        root, path, row = begin + tree, [], 0
        while (child := children.get((row, drawn[root + row]))) is not None:
            path.append(row := child)
        yield path, drawn[root + row]
