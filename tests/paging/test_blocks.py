"""Block accounts: whatever is asked, every block has exactly one owner."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from smart_serve.paging.blocks import BlockPool


class Pool(RuleBasedStateMachine):
    """A pool and the block lists of several owners, with a count of tokens as the model."""

    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.start(num_blocks=1, block_tokens=1)

    @initialize(num_blocks=st.integers(1, 20), block_tokens=st.integers(1, 7))
    def start(self, num_blocks: int, block_tokens: int) -> None:
        self.pool = BlockPool(num_blocks, block_tokens)
        self.num_blocks = num_blocks
        self.lists: list[list[int]] = []

    @rule(target=owners)
    def add_owner(self) -> int:
        self.lists.append([])
        return len(self.lists) - 1

    @rule(owner=owners, num_tokens=st.integers(0, 60))
    def grow(self, owner: int, num_tokens: int) -> None:
        blocks, free = self.lists[owner], self.pool.free
        before = list(blocks)
        needed = -(-num_tokens // self.pool.block_tokens) - len(before)
        grew = self.pool.grow(blocks, num_tokens)
        assert grew == (needed <= free)
        assert blocks[: len(before)] == before
        assert len(blocks) - len(before) == (max(needed, 0) if grew else 0)

    @rule(owner=owners, keep=st.integers(0, 60))
    def release(self, owner: int, keep: int) -> None:
        blocks = self.lists[owner]
        before = list(blocks)
        self.pool.release(blocks, keep_tokens=keep)
        assert blocks == before[: -(-keep // self.pool.block_tokens)]

    @rule(owner=owners)
    def drop(self, owner: int) -> None:
        self.pool.release(self.lists[owner])
        assert self.lists[owner] == []

    @invariant()
    def every_block_has_one_owner(self) -> None:
        held = [block for blocks in self.lists for block in blocks]
        assert len(held) + self.pool.free == self.pool.total == self.num_blocks - 1
        assert sorted([*held, *self.pool._free]) == list(range(1, self.num_blocks))

    def teardown(self) -> None:
        for blocks in self.lists:
            self.pool.release(blocks)
        self.pool.check_idle()


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_leak_and_a_double_release_are_noticed() -> None:
    pool, blocks = BlockPool(5, 4), []
    assert pool.grow(blocks, 9)
    with pytest.raises(AssertionError, match="leaked"):
        pool.check_idle()
    copy = list(blocks)
    pool.release(blocks)
    pool.check_idle()
    pool.release(copy)
    with pytest.raises(AssertionError):
        pool.check_idle()
