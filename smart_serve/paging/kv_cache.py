"""The paged KV cache's tensors."""

from __future__ import annotations

import torch

from kernels.kv_commit import kv_commit
from smart_serve.models.target import KvShape


class KvCache:
    """Keys and values of all layers, in one tensor so that a commit is one copy.

    Beside them, when a drafter wants it, a plane of features: the target's hidden states of every
    committed token. A drafter catches up from it after a pause, a reused prefix or its own death.
    It costs 1.6 % of the keys and values of a 7B LLaVA, 6 % of an 8B Llama with grouped heads.
    """

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
        self.features: torch.Tensor | None = None
        """[slots, F]"""

    def keep_features(self, width: int) -> bool:
        """Make room for features of `width`; whether what was kept so far is gone."""
        if self.features is not None and self.features.shape[1] == width:
            return False
        num_slots = self.num_blocks * self.block_tokens
        self.features = self._data.new_zeros(num_slots, width)
        return True

    def clear(self, blocks: list[int]) -> None:
        """Zeros in `blocks`, in every layer."""
        self._data.index_fill_(1, torch.tensor(blocks, device=self._data.device), 0.0)

    def commit(
        self,
        slots: torch.Tensor,
        first_rows: torch.Tensor,
        paths: torch.Tensor,
        lengths: torch.Tensor,
    ) -> None:
        """Move accepted paths to the front in every layer; arguments as for `kv_commit`."""
        kv_commit(self._data.flatten(1, 2), slots, first_rows, paths, lengths)
