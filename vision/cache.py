"""Features of pictures seen before, by content hash, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

import msgspec
import numpy as np
from numpy.typing import NDArray


class CacheStats(msgspec.Struct, frozen=True):
    """A reading of the cache's counters."""

    hits: int
    misses: int
    entries: int
    size_bytes: int


class FeatureCache:
    """Least recently used goes first. Safe to share between threads."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of the arrays; 0 keeps nothing."""
        if max_bytes < 0:
            raise ValueError("max_bytes must not be negative")
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._size_bytes = 0
        self._hits = 0
        self._misses = 0

    def get(self, content_hash: str) -> NDArray[np.float32] | None:
        """The features [num_tokens, hidden], read-only, or None; counts a hit or a miss."""
        with self._lock:
            features = self._entries.get(content_hash)
            if features is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(content_hash)
            return features

    def put(self, content_hash: str, features: NDArray[np.float32]) -> None:
        """Keeps `features`, which becomes read-only; one larger than the cache is not kept."""
        features.flags.writeable = False
        if features.nbytes > self._max_bytes:
            return
        with self._lock:
            old = self._entries.pop(content_hash, None)
            if old is not None:
                self._size_bytes -= old.nbytes
            self._entries[content_hash] = features
            self._size_bytes += features.nbytes
            while self._size_bytes > self._max_bytes:
                _, dropped = self._entries.popitem(last=False)
                self._size_bytes -= dropped.nbytes

    def stats(self) -> CacheStats:
        """Counters since the start."""
        with self._lock:
            return CacheStats(self._hits, self._misses, len(self._entries), self._size_bytes)
