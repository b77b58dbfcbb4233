"""Write the keys and values of a step's tokens into the paged cache.

cache[slots[n]] = rows[n]        n = 0..N-1
"""

from __future__ import annotations

import torch


def kv_write(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> None:
    """In place. cache [blocks, block_tokens, H_kv, D], rows [N, H_kv, D], slots [N] int64.

    Slot s is token s % block_tokens of block s // block_tokens; slots are distinct.
    """
    cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, rows)
