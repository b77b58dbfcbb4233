"""Accounts of the paged KV cache: which block belongs to whom. No tensors here."""

from __future__ import annotations


class BlockPool:
    """Hands out KV blocks. Owned by the scheduler; block 0 is never handed out.

    Block 0 is padding: rows and tables that are padded to a common length point at it.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.total = num_blocks - 1
        self.cached = 0
        self._free = list(range(num_blocks - 1, 0, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def grow(self, blocks: list[int], num_tokens: int) -> bool:
        """Extend `blocks` in place to hold `num_tokens`; False, and nothing changed, if the pool
        has too few."""
        missing = self.blocks_for(num_tokens) - len(blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            blocks.append(self._free.pop())
        return True

    def release(self, blocks: list[int], keep_tokens: int = 0) -> None:
        """Give back, in place, all blocks beyond those that hold `keep_tokens`."""
        keep = self.blocks_for(keep_tokens)
        while len(blocks) > keep:
            self._free.append(blocks.pop())

    def check_idle(self) -> None:
        """With no sequence left, every block must be free or cached."""
        assert self.free + self.cached == self.total, (
            f"KV blocks leaked: {self.free} free + {self.cached} cached of {self.total}"
        )
        assert len(set(self._free)) == len(self._free), "a KV block is free twice"
