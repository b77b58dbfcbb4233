"""Accounts of the paged KV cache: which block belongs to whom. No tensors here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, MutableSequence, Sequence


class BlockPool:
    """Hands out KV blocks, and finds again those whose contents are known. Owned by the scheduler.

    A block is free, held by one or more readers, or cached: published under a key that stands for
    all that its contents depend on, and held by no one. Cached blocks are found by their key, and
    taken for something else, least recently used first, when no free block is left. Only full
    blocks of committed tokens are published, and nothing is ever written to those: sharing needs
    no copy.

    Block 0 is never handed out. It is padding: rows and tables that are padded to a common length
    point at it.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.total = num_blocks - 1
        self._free = list(range(num_blocks - 1, 0, -1))
        self._readers = [0] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._cached: dict[int, None] = {}
        """In order of last use. A list is given back from its end, so that a block comes before
        the one it continues and goes first."""

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def grow(self, blocks: MutableSequence[int], num_tokens: int) -> bool:
        """Extend `blocks` in place to hold `num_tokens`; False, and nothing changed, if the pool
        has too few."""
        missing = self.blocks_for(num_tokens) - len(blocks)
        if missing <= 0:
            return True
        if missing > self.free + self.cached:
            return False
        for _ in range(missing):
            if not self._free:
                self._evict()
            blocks.append(self._free.pop())
            self._readers[blocks[-1]] = 1
        return True

    def release(self, blocks: MutableSequence[int], keep_tokens: int = 0) -> None:
        """Give back, in place, all blocks beyond those that hold `keep_tokens`."""
        keep = self.blocks_for(keep_tokens)
        while len(blocks) > keep:
            self._drop(blocks.pop())

    def adopt(self, blocks: MutableSequence[int], index: int, key: bytes) -> bool:
        """Make the block published under `key` number `index` of `blocks`, instead of the one
        there or after the last; False, and nothing changed, if there is none."""
        block = self._block_of.get(key)
        if block is None:
            return False
        self._readers[block] += 1
        self._cached.pop(block, None)
        if index == len(blocks):
            blocks.append(block)
        else:
            self._drop(blocks[index])
            blocks[index] = block
        return True

    def publish(self, blocks: MutableSequence[int], index: int, key: bytes) -> None:
        """Block number `index` of `blocks` is full and committed: others may find it by `key`.

        If another block is published under the key already, it takes this one's place.
        """
        if not self.adopt(blocks, index, key):
            self._block_of[key] = blocks[index]
            self._key_of[blocks[index]] = key

    def disown(self, blocks: Sequence[int]) -> list[int]:
        """What `blocks` hold is not to be trusted: no one shall find them from now on. Returns
        those that have no other reader."""
        for block in blocks:
            self._forget(block)
        return [block for block in blocks if self._readers[block] == 1]

    def flush(self) -> None:
        """No one shall find any block from now on; who holds one keeps it."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._key_of.clear()
        self._block_of.clear()

    def check(self, owners: Iterable[Sequence[int]]) -> None:
        """The accounts add up when `owners` are all the lists of blocks that are held."""
        held = Counter(block for blocks in owners for block in blocks)
        readers = {block: count for block, count in enumerate(self._readers) if count}
        assert readers == held, "KV blocks leaked, or released twice"
        free, cached = set(self._free), set(self._cached)
        assert len(free) == self.free, "a KV block is free twice"
        assert not (free | {0}) & (cached | held.keys()), "a KV block is free and in use"
        assert not cached & held.keys(), "a KV block is held and may be evicted"
        assert len(free) + len(cached) + len(held) == self.total, (
            f"KV blocks leaked: {self.free} free + {self.cached} cached + {len(held)} held "
            f"of {self.total}"
        )
        published = {block: key for key, block in self._block_of.items()}
        assert published == self._key_of, "a KV block and its key do not agree"
        assert cached <= published.keys() <= cached | held.keys(), "a published block is free"

    def check_idle(self) -> None:
        """With no sequence left, every block must be free or cached."""
        self.check(())

    def _drop(self, block: int) -> None:
        """One reader less."""
        self._readers[block] -= 1
        if self._readers[block] > 0:
            return
        if block in self._key_of:
            self._cached[block] = None
        else:
            self._free.append(block)

    def _evict(self) -> None:
        """The least recently used cached block becomes free."""
        block = next(iter(self._cached))
        del self._cached[block]
        self._forget(block)
        self._free.append(block)

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]
