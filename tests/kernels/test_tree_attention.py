"""Packed paged attention equals a dense softmax over each sequence by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.tree_attention import AttentionGroup, tree_attention

BLOCK = 5


def dense(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor
) -> torch.Tensor:
    """[n, H, D] in float64: one sequence, its own keys [S, H_kv, D], visible [n, S]."""
    repeat = query.shape[1] // keys.shape[1]
    keys, values = (x.double().repeat_interleave(repeat, dim=1) for x in (keys, values))
    scores = torch.einsum("nhd,shd->hns", query.double(), keys) * query.shape[2] ** -0.5
    scores = scores.masked_fill(~visible.unsqueeze(0), -torch.inf)
    return torch.einsum("hns,shd->nhd", scores.softmax(dim=-1), values)


class Ragged:
    """Random trees over random contexts, in a cache whose free slots hold numbers too."""

    def __init__(self, seed: int, heads: int, kv_heads: int, dim: int, sizes: list[int]) -> None:
        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        contexts = rng.integers(1, 23, len(sizes))
        needed = [-(-(c + n) // BLOCK) for c, n in zip(contexts, sizes, strict=True)]
        blocks = 1 + rng.permutation(sum(needed) + 3)
        shape = (len(blocks) + 1, BLOCK, kv_heads, dim)
        self.keys = torch.randn(shape, generator=generator)
        self.values = torch.randn(shape, generator=generator)
        self.query = torch.randn(sum(sizes), heads, dim, generator=generator)
        tables = np.split(blocks, np.cumsum(needed))[:-1]
        self.expected, groups, first = [], [], 0
        cut = int(rng.integers(1, len(sizes) + 1))
        for members in (range(cut), range(cut, len(sizes))):
            if members:
                groups.append(self._group(rng, members, sizes, contexts, tables, first))
                first += sum(sizes[i] for i in members)
        self.groups = tuple(groups)

    def _group(
        self,
        rng: np.random.Generator,
        members: range,
        sizes: list[int],
        contexts: np.ndarray,
        tables: list[np.ndarray],
        first: int,
    ) -> AttentionGroup:
        width = max(sizes[i] for i in members)
        length = max(len(tables[i]) for i in members)
        table = torch.zeros(len(members), length, dtype=torch.int64)
        mask = torch.full((len(members), 1, width, length * BLOCK), -torch.inf)
        rows, real, row = [], [], first
        for place, i in enumerate(members):
            table[place, : len(tables[i])] = torch.from_numpy(tables[i])
            visible = self._visible(rng, int(contexts[i]), sizes[i])
            mask[place, 0, :, 0] = 0.0
            mask[place, 0, : sizes[i], : visible.shape[1]] = torch.where(visible, 0.0, -torch.inf)
            own = torch.from_numpy(tables[i])
            keys, values = (x[own].flatten(0, 1)[: visible.shape[1]] for x in
                            (self.keys, self.values))  # fmt: skip
            self.expected.append(dense(self.query[row : row + sizes[i]], keys, values, visible))
            rows += [row + min(q, sizes[i] - 1) for q in range(width)]
            real += [place * width + q for q in range(sizes[i])]
            row += sizes[i]
        padded = len(rows) != row - first
        return AttentionGroup(
            table,
            mask,
            first,
            row - first,
            torch.tensor(rows) if padded else None,
            torch.tensor(real) if padded else None,
        )

    @staticmethod
    def _visible(rng: np.random.Generator, context: int, size: int) -> torch.Tensor:
        visible = np.zeros((size, context + size), np.bool_)
        visible[:, :context] = True
        for row in range(size):
            if row:
                parent = int(rng.integers(0, row))
                visible[row, context:] = visible[parent, context:]
            visible[row, context + row] = True
        return torch.from_numpy(visible)


def worst_error(case: Ragged) -> float:
    scale = case.query.shape[2] ** -0.5
    got = tree_attention(case.query, case.keys, case.values, case.groups, scale)
    return float((got.double() - torch.cat(case.expected)).abs().max())


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 2), (5, 1), (8, 4)]),
    dim=st.sampled_from([2, 7, 16, 33]),
    sizes=st.lists(st.integers(1, 13), min_size=1, max_size=6),
)
def test_ragged_trees_equal_dense_attention(
    seed: int, heads: tuple[int, int], dim: int, sizes: list[int]
) -> None:
    assert worst_error(Ragged(seed, heads[0], heads[1], dim, sizes)) < 1e-5


@pytest.mark.parametrize("kind", ["a sibling seen", "another's block"])
def test_a_wrong_mask_or_table_shows(kind: str) -> None:
    """The control: the comparison is sharp enough to see one wrong entry."""
    case = Ragged(3, 4, 2, 16, [6, 6])
    group = case.groups[0]
    if kind == "a sibling seen":
        hidden = (group.mask[0, 0, 5] < 0).nonzero()[0]
        group.mask[0, 0, 5, hidden] = 0.0
    else:
        group.block_tables[0, 0] = group.block_tables[0, 0] + 1
    assert worst_error(case) > 1e-3
