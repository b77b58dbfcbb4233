"""The paged KV cache's tensors."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.kv_commit import kv_commit
from smart_serve.models.target import KvShape


class KvCache:
    """Keys and values of all layers, in one tensor so that a commit is one copy."""

    def __init__(
        self,
        shape: KvShape,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        planes = 2 * shape.num_layers
        size = (planes, num_blocks, block_tokens, shape.num_kv_heads, shape.head_dim)
        # Zeros, not empty: padding is read under the mask, and 0 · NaN would not vanish.
        self._data = torch.zeros(size, dtype=dtype, device=device)
        self.keys = list(self._data[: shape.num_layers])
        """Per layer [blocks, block_tokens, H_kv, D]."""
        self.values = list(self._data[shape.num_layers :])
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens

    def slots(self, blocks: list[int], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cache slots [n] of a sequence's `positions` [n], by its block table."""
        table = np.asarray(blocks, np.int64)
        block_of = table[positions // self.block_tokens]
        slots: NDArray[np.int64] = block_of * self.block_tokens + positions % self.block_tokens
        return slots

    def clear(self, blocks: list[int]) -> None:
        """Zeros in `blocks`, in every layer."""
        self._data.index_fill_(1, torch.tensor(blocks, device=self._data.device), 0.0)

    def move(self, source: NDArray[np.int64], target: NDArray[np.int64]) -> None:
        """Copy the tokens in slots `source` [J] to slots `target` [J], in every layer."""
        if len(source) > 0:
            device = self._data.device
            slots = torch.from_numpy(np.stack((source, target))).to(device)
            kv_commit(self._data.flatten(1, 2), slots[0], slots[1])
