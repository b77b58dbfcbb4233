"""Writing and committing keys and values: exactly the slots that are named, all at once."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.kv_commit import kv_commit
from kernels.kv_write import kv_write

PLANES, BLOCKS, BLOCK, HEADS, DIM = 4, 6, 3, 2, 5
SLOTS = BLOCKS * BLOCK


@settings(deadline=None, max_examples=50)
@given(slots=st.lists(st.integers(0, SLOTS - 1), unique=True, max_size=SLOTS), seed=st.integers(0))
def test_write_fills_its_slots_and_no_other(slots: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    cache = torch.randn(BLOCKS, BLOCK, HEADS, DIM, generator=generator)
    before = cache.clone()
    rows = torch.randn(len(slots), HEADS, DIM, generator=generator)
    kv_write(cache, rows, torch.tensor(slots, dtype=torch.int64))
    for slot in range(SLOTS):
        place = (slot // BLOCK, slot % BLOCK)
        expected = rows[slots.index(slot)] if slot in slots else before[place]
        assert torch.equal(cache[place], expected)


def test_write_takes_rows_that_are_not_contiguous() -> None:
    """As they come from the model: heads before rows, transposed."""
    cache = torch.zeros(BLOCKS, BLOCK, HEADS, DIM)
    rows = torch.randn(HEADS, 4, DIM).transpose(0, 1)
    kv_write(cache, rows, torch.tensor([16, 0, 7, 3]))
    assert torch.equal(cache.flatten(0, 1)[[16, 0, 7, 3]], rows)


def commit_one_by_one(cache: torch.Tensor, source: list[int], target: list[int]) -> torch.Tensor:
    before = cache.clone()
    after = cache.clone()
    for s, t in zip(source, target, strict=True):
        after[:, t] = before[:, s]
    return after


@settings(deadline=None, max_examples=80)
@given(
    target=st.lists(st.integers(0, SLOTS - 1), unique=True, max_size=SLOTS),
    data=st.data(),
)
def test_commit_moves_all_at_once(target: list[int], data: st.DataObject) -> None:
    source = data.draw(
        st.lists(st.integers(0, SLOTS - 1), min_size=len(target), max_size=len(target))
    )
    cache = torch.randn(PLANES, SLOTS, HEADS, DIM)
    expected = commit_one_by_one(cache, source, target)
    kv_commit(cache, torch.tensor(source, dtype=torch.int64), torch.tensor(target).long())
    assert torch.equal(cache, expected)


def test_an_accepted_path_that_overlaps_its_place_arrives_whole() -> None:
    """Rows 2, 3, 5 of a tree at slot 4 move to 5, 6, 7: row 3's source is row 2's target's
    neighbour. Copying one after another would still be right here, backwards it would not."""
    cache = torch.arange(SLOTS, dtype=torch.float32).view(1, SLOTS, 1, 1).clone()
    kv_commit(cache, torch.tensor([6, 7, 9]), torch.tensor([5, 6, 7]))
    assert cache.flatten().tolist()[4:10] == [4, 6, 7, 9, 8, 9]


def test_in_place_updates_would_break_an_overlap() -> None:
    """The control for `all at once`: a chain of moves done one by one smears one value."""
    cache = torch.arange(5.0).view(1, 5, 1, 1).clone()
    source, target = [0, 1, 2], [1, 2, 3]
    smeared = cache.clone()
    for s, t in zip(source, target, strict=True):
        smeared[:, t] = smeared[:, s]
    kv_commit(cache, torch.tensor(source), torch.tensor(target))
    assert cache.flatten().tolist() == [0, 0, 1, 2, 4]
    assert smeared.flatten().tolist() == [0, 0, 0, 0, 4]


def test_no_moves_change_nothing() -> None:
    cache = torch.randn(PLANES, SLOTS, HEADS, DIM)
    before = cache.clone()
    nothing = torch.empty(0, dtype=torch.int64)
    kv_commit(cache, nothing, nothing)
    kv_write(cache[0].view(BLOCKS, BLOCK, HEADS, DIM), torch.empty(0, HEADS, DIM), nothing)
    assert torch.equal(cache, before)
