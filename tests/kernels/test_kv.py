"""Writing and committing keys and values: exactly the slots that are meant, all at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_interpreter import DEVICE, GPU_MARKS

from kernels.gpu import kv as gpu_kv
from kernels.kv_commit import kv_commit
from kernels.kv_write import kv_write

PLANES, BLOCKS, BLOCK, HEADS, DIM = 4, 6, 3, 2, 5
SLOTS = BLOCKS * BLOCK
Write = Callable[..., None]
WRITERS = [
    pytest.param(kv_write, id="reference"),
    pytest.param(gpu_kv.write, id="kernel", marks=GPU_MARKS),
]
COMMITTERS = [
    pytest.param(kv_commit, id="reference"),
    pytest.param(gpu_kv.commit, id="kernel", marks=GPU_MARKS),
]


class Guarded:
    """A tensor inside a larger one whose other numbers must never change."""

    def __init__(self, *shape: int) -> None:
        size, zone = int(np.prod(shape)), 4096
        self._all = torch.randn(size + 2 * zone, device=DEVICE)
        self._before = self._all.clone()
        self._inside = slice(zone, zone + size)
        self.inner = self._all[self._inside].view(shape)

    @property
    def is_intact(self) -> bool:
        changed = self._all != self._before
        changed[self._inside] = False
        return not bool(changed.any())


@settings(deadline=None, max_examples=15)
@given(slots=st.lists(st.integers(0, SLOTS - 1), unique=True, max_size=SLOTS))
@pytest.mark.parametrize("write", WRITERS)
def test_write_fills_its_slots_and_no_other(write: Write, slots: list[int]) -> None:
    """Rows are not contiguous, as they come from the model: heads before rows, transposed."""
    caches = [Guarded(BLOCKS, BLOCK, HEADS, DIM) for _ in range(2)]
    rows = [torch.randn(HEADS, len(slots), DIM, device=DEVICE).transpose(0, 1) for _ in range(2)]
    expected = [cache.inner.flatten(0, 1).clone() for cache in caches]
    for flat, own in zip(expected, rows, strict=True):
        flat[slots] = own
    write(*(cache.inner for cache in caches), *rows, torch.tensor(slots, device=DEVICE).long())
    for cache, flat in zip(caches, expected, strict=True):
        assert torch.equal(cache.inner.flatten(0, 1), flat)
        assert cache.is_intact


@pytest.mark.parametrize("write", WRITERS[1:])
def test_the_kernel_leaves_out_slots_that_do_not_exist(write: Write) -> None:
    caches = [Guarded(BLOCKS, BLOCK, HEADS, DIM) for _ in range(2)]
    before = caches[0].inner.clone()
    rows = torch.randn(3, HEADS, DIM, device=DEVICE)
    slots = torch.tensor([-1, SLOTS, SLOTS + 7], device=DEVICE)
    write(caches[0].inner, caches[1].inner, rows, rows, slots)
    assert caches[0].is_intact
    assert caches[1].is_intact
    assert torch.equal(caches[0].inner, before)


class Accepted:
    """Trees over scattered slots, and a path of any length through each."""

    def __init__(self, seed: int, sizes: list[int], max_depth: int) -> None:
        rng = np.random.default_rng(seed)
        rows = [size + 1 for size in sizes]
        self.slots = rng.permutation(SLOTS)[: sum(rows)]
        self.first_rows = np.concatenate(([0], np.cumsum(rows)))
        self.lengths = np.asarray([rng.integers(0, min(size, max_depth) + 1) for size in sizes])
        self.paths = np.zeros((len(sizes), max_depth), np.int64)
        for path, size, length in zip(self.paths, sizes, self.lengths, strict=True):
            path[:length] = 1 + np.sort(rng.choice(size, length, replace=False))
            # What lies beyond the length must not matter, whatever it is.
            path[length:] = rng.integers(-(10**6), 10**6, max_depth - length)

    def commit(self, function: Write, cache: torch.Tensor) -> None:
        arrays = (self.slots, self.first_rows, self.paths, self.lengths)
        function(cache, *(torch.from_numpy(array).to(DEVICE) for array in arrays))

    def expected(self, before: torch.Tensor) -> torch.Tensor:
        after = before.clone()
        for first, path, length in zip(self.first_rows, self.paths, self.lengths, strict=False):
            for place, row in enumerate(path[:length], start=1):
                after[:, self.slots[first + place]] = before[:, self.slots[first + row]]
        return after


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    max_depth=st.integers(1, 6),
)
@pytest.mark.parametrize("commit", COMMITTERS)
def test_accepted_rows_arrive_whole_and_nothing_else_changes(
    commit: Write, seed: int, sizes: list[int], max_depth: int
) -> None:
    accepted, cache = Accepted(seed, sizes, max_depth), Guarded(PLANES, SLOTS, HEADS, DIM)
    expected = accepted.expected(cache.inner)
    accepted.commit(commit, cache.inner)
    assert torch.equal(cache.inner, expected)
    assert cache.is_intact


@pytest.mark.parametrize("commit", COMMITTERS)
def test_a_path_that_overlaps_its_place(commit: Write) -> None:
    """Rows 2, 3, 5 of a tree at slot 4: row 3 goes where row 2 was read from."""
    cache = torch.arange(SLOTS, dtype=torch.float32, device=DEVICE).view(1, SLOTS, 1, 1).clone()
    accepted = Accepted(0, [5], 3)
    accepted.slots, accepted.paths[0], accepted.lengths[0] = np.arange(4, 10), [2, 3, 5], 3
    accepted.commit(commit, cache)
    assert cache.flatten().tolist()[4:10] == [4, 6, 7, 9, 8, 9]
    # The control: the other way round, a value is overwritten before it is read.
    smeared = torch.arange(SLOTS)
    for source, target in reversed([(6, 5), (7, 6), (9, 7)]):
        smeared[target] = smeared[source]
    assert smeared.tolist()[4:10] != [4, 6, 7, 9, 8, 9]


@pytest.mark.parametrize("commit", COMMITTERS[1:])
@pytest.mark.parametrize("row", [10**9, -(10**9)])
def test_the_kernel_stays_inside_whatever_the_paths(commit: Write, row: int) -> None:
    accepted, cache = Accepted(3, [4, 2], 5), Guarded(PLANES, SLOTS, HEADS, DIM)
    accepted.paths[:], accepted.lengths[:] = row, [7, 9]
    accepted.commit(commit, cache.inner)
    assert cache.is_intact
