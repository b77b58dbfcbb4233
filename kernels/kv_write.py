"""Write the keys and values of a step's tokens into the paged cache.

cache[slots[n]] = rows[n]        n = 0..N-1, for keys and values alike
"""

from __future__ import annotations

import torch


def kv_write(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """In place. Caches [blocks, block_tokens, H_kv, D], keys and values [N, H_kv, D], slots [N]
    int64.

    Slot s is token s % block_tokens of block s // block_tokens; slots are distinct, but for padding
    rows, which may share one.
    """
    if slots.is_cuda:
        from kernels.gpu.kv import write

        write(key_cache, value_cache, keys, values, slots)
        return
    for cache, rows in ((key_cache, keys), (value_cache, values)):
        cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, rows)
