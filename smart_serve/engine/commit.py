"""What a step's accepted rows change in the cache, collected over the batch and done at once."""

from __future__ import annotations

import numpy as np
import torch

from smart_serve.engine.sequence import Sequence
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import Ints


class CacheCommit:
    """Accepted keys and values move to the front; features of committed rows are kept."""

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self._sources: list[Ints] = []
        self._targets: list[Ints] = []
        self._rows: list[Ints] = []
        self._slots: list[Ints] = []

    def add_path(self, sequence: Sequence, first_row: int, path: list[int]) -> None:
        """Tree rows `path` (the root's 0 first) of a tree that begins at packed row `first_row`;
        before the sequence advances."""
        rows = np.asarray(path, np.int64)
        slots = self.add_rows(sequence, first_row + rows)
        moved = rows != np.arange(len(rows))
        if moved.any():
            source = sequence.num_computed + rows[moved]
            self._sources.append(self._cache.slots(sequence.blocks, source))
            self._targets.append(slots[moved])

    def add_rows(self, sequence: Sequence, rows: Ints) -> Ints:
        """Packed `rows` [n] become the sequence's next committed positions; their slots [n]."""
        positions = sequence.num_computed + np.arange(len(rows))
        slots = self._cache.slots(sequence.blocks, positions)
        self._rows.append(rows)
        self._slots.append(slots)
        return slots

    def apply(self, features: torch.Tensor) -> None:
        """`features` [N, F] of all packed rows."""
        if self._sources:
            self._cache.move(np.concatenate(self._sources), np.concatenate(self._targets))
        kept = self._cache.features
        if kept is not None and self._rows:
            both = np.stack((np.concatenate(self._rows), np.concatenate(self._slots)))
            on_device = torch.from_numpy(both).to(kept.device)
            kept.index_copy_(0, on_device[1], features.index_select(0, on_device[0]))
