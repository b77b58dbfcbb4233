"""The walk down every draft tree, without asking the host at each node."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def walk_trees(
    drawn, offsets, parents, token_ids, paths, lengths, bonus, max_length, TILE: tl.constexpr
):
    """One program per tree, all of its nodes at once in a tile."""
    tree = tl.program_id(0)
    begin, end = tl.load(offsets + tree), tl.load(offsets + tree + 1)
    first_row = begin + tree  # every tree has a root, which is no node
    node = tl.arange(0, TILE)
    inside = node < end - begin
    parent = tl.load(parents + begin + node, mask=inside, other=-1)
    token_id = tl.load(token_ids + begin + node, mask=inside, other=-1)
    row, length = tl.full([], 0, tl.int32), tl.full([], 0, tl.int64)
    token = tl.load(drawn + first_row)
    searching = end > begin
    while searching:
        is_next = inside & (parent == row) & (token_id == token)
        child = tl.max(tl.where(is_next, node + 1, 0), 0)
        searching = (child > 0) & (length < max_length)
        if searching:
            tl.store(paths + tree * max_length + length, child.to(tl.int64))
            row = child
            token = tl.load(drawn + first_row + child)
            length += 1
    tl.store(lengths + tree, length)
    tl.store(bonus + tree, token)


def walk(
    drawn: torch.Tensor,
    offsets: torch.Tensor,
    parents: torch.Tensor,
    token_ids: torch.Tensor,
    max_nodes: int,
    max_depth: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `kernels.verify.verify`; no tree has more than `max_nodes` nodes."""
    trees = len(offsets) - 1
    paths = drawn.new_zeros(trees, max_depth)
    lengths, bonus = drawn.new_zeros(2, trees)
    if trees > 0:
        tile = max(16, triton.next_power_of_2(max_nodes))
        walk_trees[(trees,)](
            drawn, offsets, parents, token_ids, paths, lengths, bonus, max_depth, TILE=tile
        )
    return paths, lengths, bonus
