"""The walk down the trees, as kernel and as reference, against one written out for one tree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_interpreter import DEVICE, GPU_MARKS

from kernels.gpu.verify import walk
from kernels.verify import Walk, verify

Verify = Callable[..., Walk]
VOCAB = 4
"""So small that walks get far."""


def by_kernel(*arrays: torch.Tensor, max_nodes: int, max_depth: int) -> Walk:
    """Interpreted where there is no GPU."""
    found = walk(*(array.to(DEVICE) for array in arrays), max_nodes, max_depth)
    return Walk(*(array.cpu() for array in found))


VERIFIERS = [
    pytest.param(verify, id="reference"),
    pytest.param(by_kernel, id="kernel", marks=GPU_MARKS),
]


class Trees:
    """Random trees, siblings distinct, and a token drawn after every row."""

    def __init__(self, seed: int, sizes: list[int]) -> None:
        rng = np.random.default_rng(seed)
        parents, tokens, self.depth = [], [], 0
        for size in sizes:
            taken, depths = set(), [0]
            for row in range(1, size + 1):
                free = [(p, t) for p in range(row) for t in range(VOCAB) if (p, t) not in taken]
                pair = free[int(rng.integers(0, len(free)))]
                taken.add(pair)
                depths.append(depths[pair[0]] + 1)
                parents.append(pair[0])
                tokens.append(pair[1])
            self.depth = max(self.depth, *depths)
        self.sizes = sizes
        self.offsets = torch.tensor([0, *np.cumsum(sizes)])
        self.parents = torch.tensor(parents, dtype=torch.int64)
        self.token_ids = torch.tensor(tokens, dtype=torch.int64)
        self.drawn = torch.from_numpy(rng.integers(0, VOCAB, sum(sizes) + len(sizes)))

    def verify(self, function: Verify, **changed: int) -> Walk:
        bounds = {"max_nodes": max(self.sizes), "max_depth": self.depth, **changed}
        return function(self.drawn, self.offsets, self.parents, self.token_ids, **bounds)

    def expected(self, tree: int) -> tuple[list[int], int]:
        begin, end = int(self.offsets[tree]), int(self.offsets[tree + 1])
        drawn = self.drawn[begin + tree : end + tree + 1].tolist()
        edges = list(zip(self.parents[begin:end], self.token_ids[begin:end], strict=True))
        path, row = [], 0
        while (row, drawn[row]) in edges:
            row = edges.index((row, drawn[row])) + 1
            path.append(row)
        return path, drawn[row]


def paths_of(found: Walk) -> list[list[int]]:
    return [path[:length] for path, length in zip(found.paths.tolist(), found.lengths, strict=True)]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5))
@pytest.mark.parametrize("function", VERIFIERS)
def test_walks_end_where_they_should(function: Verify, seed: int, sizes: list[int]) -> None:
    trees = Trees(seed, sizes)
    found = trees.verify(function)
    expected = [trees.expected(i) for i in range(len(sizes))]
    assert paths_of(found) == [path for path, _ in expected]
    assert found.bonus.tolist() == [bonus for _, bonus in expected]
    unused = torch.arange(found.paths.shape[1]) >= found.lengths[:, None]
    assert bool((found.paths[unused] == 0).all())


@pytest.mark.parametrize("function", VERIFIERS)
def test_a_chain_that_is_right_is_accepted_whole(function: Verify) -> None:
    trees = Trees(0, [40])
    trees.parents, trees.token_ids = torch.arange(40), torch.arange(40) % VOCAB
    trees.drawn = torch.arange(41) % VOCAB
    found = trees.verify(function, max_depth=40)
    assert found.lengths.tolist() == [40]
    assert found.bonus.tolist() == [40 % VOCAB]
    # The control: one wrong token stops it there.
    trees.drawn[17] += 1
    assert trees.verify(function, max_depth=40).lengths.tolist() == [17]
