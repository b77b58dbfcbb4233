"""The feature cache stays within its bytes and forgets the least recently used."""

import threading

import numpy as np

from vision.cache import FeatureCache


def features(value: float) -> np.ndarray:
    return np.full((2, 4), value, dtype=np.float32)  # 32 bytes


def test_the_least_recently_used_goes_first() -> None:
    cache = FeatureCache(max_bytes=64)
    cache.put("a", features(1))
    cache.put("b", features(2))
    assert cache.get("a") is not None
    cache.put("c", features(3))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.get("c") is not None
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.entries, stats.size_bytes) == (3, 1, 2, 64)


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = FeatureCache(max_bytes=31)
    cache.put("a", features(1))
    assert cache.get("a") is None
    assert cache.stats().size_bytes == 0


def test_bytes_are_right_after_concurrent_use() -> None:
    cache = FeatureCache(max_bytes=32 * 5)

    def work(seed: int) -> None:
        for key in np.random.default_rng(seed).integers(0, 12, 400):
            if cache.get(str(key)) is None:
                cache.put(str(key), features(float(key)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = cache.stats()
    assert stats.hits + stats.misses == 1600
    assert stats.size_bytes == 32 * stats.entries <= 160
