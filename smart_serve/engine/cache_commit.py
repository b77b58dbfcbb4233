"""What a step's accepted rows change in the cache, collected over the batch and done at once."""

from __future__ import annotations

import numpy as np
import torch

from kernels.to_device import to_device
from kernels.verify import Walk
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import Ints


class CacheCommit:
    """Accepted keys and values move to the front; features of committed rows are kept.

    A row's place is named by the packed row that was written there: the i-th accepted row of a tree
    belongs where its row i stands.
    """

    def __init__(self, cache: KvCache, slots: torch.Tensor) -> None:
        """`slots` [N]: where the step's packed rows wrote."""
        self._cache = cache
        self._slots = slots
        self._rows: list[Ints] = []
        self._places: list[Ints] = []

    def add_rows(self, rows: Ints, places: Ints) -> None:
        """Packed rows [n] are committed, in the places of `places` [n]."""
        self._rows.append(rows)
        self._places.append(places)

    def apply(self, walk: Walk, first_rows: Ints, features: torch.Tensor) -> None:
        """`walk` through the trees, each of which begins at one of the `first_rows`; `features`
        [N, F] of all packed rows."""
        if walk.paths.shape[1] > 0:
            first = to_device(first_rows[: len(walk.lengths) + 1], self._slots.device)
            self._cache.commit(self._slots, first, walk.paths, walk.lengths)
        kept = self._cache.features
        if kept is None or not self._rows:
            return
        committed = np.concatenate(self._rows)
        if len(committed) == len(self._slots):  # As in plain decoding: all rows, each in place.
            kept.index_copy_(0, self._slots, features)
            return
        both = np.stack((committed, np.concatenate(self._places)))
        rows, places = to_device(both, kept.device)
        kept.index_copy_(0, self._slots[places], features.index_select(0, rows))
