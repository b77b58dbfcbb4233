"""Block accounts: whatever is asked, every block has its owners, and is found or is not."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from smart_serve.paging.blocks import BlockPool

OWNERS = st.integers(0, 3)
WORDS = st.sampled_from([b"a", b"b", b"ab", b"aa", b"aaab"])


class Pool(RuleBasedStateMachine):
    """A pool and a plain model of it. A block's key is the word that its owner spells up to it."""

    kind = BlockPool

    def __init__(self) -> None:
        super().__init__()
        self.start(num_blocks=1, block_tokens=1)

    @initialize(num_blocks=st.integers(1, 14), block_tokens=st.integers(1, 3))
    def start(self, num_blocks: int, block_tokens: int) -> None:
        self.pool = self.kind(num_blocks, block_tokens)
        self.num_blocks = num_blocks
        self.lists: list[list[int]] = [[] for _ in range(4)]
        self.words = [b""] * 4
        self.published: dict[bytes, int] = {}
        self.cached: list[int] = []

    @rule(owner=OWNERS, num_tokens=st.integers(0, 20))
    def grow(self, owner: int, num_tokens: int) -> None:
        blocks, free = self.lists[owner], self.pool.free
        before = list(blocks)
        missing = max(0, -(-num_tokens // self.pool.block_tokens) - len(before))
        grew = self.pool.grow(blocks, num_tokens)
        assert grew == (missing <= free + len(self.cached))
        assert blocks[: len(before)] == before
        assert len(blocks) - len(before) == (missing if grew else 0)
        for block in self.cached[: max(0, missing - free) if grew else 0]:
            self.cached.remove(block)
            self.forget(block)

    @rule(owner=OWNERS, word=WORDS)
    def spell(self, owner: int, word: bytes) -> None:
        """Adopt what there is of the word, and publish the rest of it as far as there is room."""
        num_blocks = len(self.words[owner]) + len(word)
        self.grow(owner, num_blocks * self.pool.block_tokens)
        adopting = True
        for letter in word:
            key = self.words[owner] + bytes([letter])
            adopting = adopting and self.adopt(owner, key)
            if not adopting and len(self.words[owner]) < len(self.lists[owner]):
                self.publish(owner, key)

    @rule(owner=OWNERS, word=WORDS)
    def publish_all(self, owner: int, word: bytes) -> None:
        """Publish without a look at what there is: two may have computed the same."""
        for letter in word[: len(self.lists[owner]) - len(self.words[owner])]:
            self.publish(owner, self.words[owner] + bytes([letter]))

    def publish(self, owner: int, key: bytes) -> None:
        blocks, index = self.lists[owner], len(key) - 1
        own = blocks[index]
        self.pool.publish(blocks, index, key)
        shared = self.published.setdefault(key, own)
        assert blocks[index] == shared
        self.hold(owner, key)

    def adopt(self, owner: int, key: bytes) -> bool:
        blocks, index = self.lists[owner], len(key) - 1
        before, shared = list(blocks), self.published.get(key)
        assert self.pool.adopt(blocks, index, key) == (shared is not None)
        if shared is None:
            assert blocks == before
            return False
        assert blocks == [*before[:index], shared, *before[index + 1 :]]
        self.hold(owner, key)
        return True

    @rule(owner=OWNERS, keep=st.one_of(st.just(0), st.integers(0, 20)))
    def release(self, owner: int, keep: int) -> None:
        blocks = self.lists[owner]
        before = list(blocks)
        kept = -(-keep // self.pool.block_tokens)
        self.pool.release(blocks, keep_tokens=keep)
        assert blocks == before[:kept]
        self.words[owner] = self.words[owner][:kept]
        held = {block for mine in self.lists for block in mine}
        published = self.published.values()
        self.cached += [b for b in reversed(before[kept:]) if b in published and b not in held]

    @rule(owner=OWNERS)
    def disown(self, owner: int) -> None:
        blocks = self.lists[owner]
        others = {b for mine in self.lists if mine is not blocks for b in mine}
        assert self.pool.disown(blocks) == [block for block in blocks if block not in others]
        for block in blocks:
            self.forget(block)

    def hold(self, owner: int, key: bytes) -> None:
        self.words[owner] = key
        self.cached = [block for block in self.cached if block != self.published[key]]

    def forget(self, block: int) -> None:
        self.published = {key: b for key, b in self.published.items() if b != block}

    @invariant()
    def the_accounts_are_the_model_s(self) -> None:
        self.pool.check(self.lists)
        held = {block for blocks in self.lists for block in blocks}
        assert list(self.pool._cached) == self.cached
        assert len(held) + self.pool.free + self.pool.cached == self.num_blocks - 1
        assert self.pool._block_of == self.published

    def teardown(self) -> None:
        for blocks in self.lists:
            self.pool.release(blocks)
        self.pool.check_idle()


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


class FreesUnderAReader(BlockPool):
    def _drop(self, block: int) -> None:
        self._readers[block] = min(self._readers[block], 1)
        super()._drop(block)


class EvictsTheNewest(BlockPool):
    def _evict(self) -> None:
        newest = next(reversed(self._cached))
        self._cached = {newest: None, **self._cached}
        super()._evict()


class LeavesEvictable(BlockPool):
    def adopt(self, blocks: list[int], index: int, key: bytes) -> bool:
        cached = dict(self._cached)
        found = super().adopt(blocks, index, key)
        self._cached = cached | self._cached
        return found


class KeepsTheKeyOfAnEvictedBlock(BlockPool):
    def _forget(self, block: int) -> None:
        self._key_of.pop(block, None)


@pytest.mark.parametrize(
    "bug", [FreesUnderAReader, EvictsTheNewest, LeavesEvictable, KeepsTheKeyOfAnEvictedBlock]
)
def test_a_planted_bug_is_caught(bug: type[BlockPool]) -> None:
    class Planted(Pool):
        kind = bug

    generate = settings(
        Pool.TestCase.settings, phases=[Phase.generate], database=None, derandomize=True
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Planted, settings=generate)


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
