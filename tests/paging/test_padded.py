"""A sequence whose blocks lie one after another is read in place, and reads the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_rows import dense_rows

from kernels.tree_attention import AttentionGroup, tree_attention
from smart_serve.models.target import KvShape
from smart_serve.paging import padded
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.padded import pack_padded
from smart_serve.paging.rows import Rows, joined

BLOCK = 4
TOGETHER, APART = [3, 4, 5], [9, 2, 7]


def cache_with_both() -> KvCache:
    """The same keys and values in the blocks `TOGETHER` and `APART`."""
    cache = KvCache(KvShape(1, 2, 8), 12, BLOCK, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(0)
    for plane in (cache.keys[0], cache.values[0]):
        plane.copy_(torch.randn(plane.shape, generator=generator))
        plane[APART] = plane[TOGETHER]
    return cache


def rows_at(blocks: list[int], num_rows: int, *, earlier: int = 0) -> Rows:
    """Rows of a tree after seven tokens; `earlier`: rows of passes before, one of them unseen."""
    visible = np.tri(num_rows, num_rows + earlier, earlier, dtype=np.bool_)
    visible[:, :1] &= earlier == 0
    return dense_rows(blocks, 7, np.zeros(num_rows, np.int64), 7 + np.arange(num_rows), visible)


def attended(cache: KvCache, group: AttentionGroup, num_rows: int) -> torch.Tensor:
    query = torch.randn(num_rows, 4, 8, generator=torch.Generator().manual_seed(1))
    return tree_attention(query, cache.keys[0], cache.values[0], (group,), 0.3)


@pytest.mark.parametrize(("num_rows", "earlier"), [(1, 0), (3, 0), (1, 2), (2, 2)])
def test_a_run_of_blocks_reads_what_scattered_blocks_do(num_rows: int, earlier: int) -> None:
    cache, like = cache_with_both(), torch.zeros(0)
    groups = []
    for blocks in (TOGETHER, APART):
        step = pack_padded([rows_at(blocks, num_rows, earlier=earlier)], cache, like)
        groups.append(step.attention.rows[0])
    together, apart = groups
    assert together.run == range(3, 3 + -(-(7 + num_rows + earlier) // BLOCK))
    assert apart.run is None
    found = attended(cache, together, num_rows)
    # To the last bit: tokens must not depend on which blocks a sequence was given.
    assert torch.equal(found, attended(cache, apart, num_rows))
    # The control: one block further on is something else.
    shifted = replace(together, run=range(together.run.start + 1, together.run.stop + 1))
    assert not torch.allclose(found, attended(cache, shifted, num_rows), atol=1e-3)


def test_sequences_of_a_batch_are_gathered() -> None:
    step = pack_padded(
        [joined([rows_at(TOGETHER, 1), rows_at(APART, 1)])], cache_with_both(), torch.zeros(0)
    )
    assert step.attention.rows[0].run is None


def test_a_large_batch_is_gathered_in_parts_and_reads_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, like = cache_with_both(), torch.zeros(0)
    sizes = (2, 1, 3, 1, 2)
    rows = joined([rows_at((APART, TOGETHER)[i % 2], n) for i, n in enumerate(sizes)])
    query = torch.randn(sum(sizes), 4, 8, generator=torch.Generator().manual_seed(1))

    def attended_in(num_groups: int) -> torch.Tensor:
        step = pack_padded([rows], cache, like)
        groups = step.attention.rows
        assert len(groups) == num_groups
        assert sum(group.num_rows for group in groups) == len(query)
        return tree_attention(query, cache.keys[0], cache.values[0], groups, 0.3)

    whole = attended_in(1)
    # Ten slots at most, of two heads of eight floats for a key and a value each.
    monkeypatch.setattr(padded, "GATHERED_BYTES", 2 * 10 * 2 * 2 * 8 * 4)
    torch.testing.assert_close(attended_in(3), whole, atol=1e-6, rtol=0)
    monkeypatch.setattr(padded, "GATHERED_BYTES", 1)
    torch.testing.assert_close(attended_in(5), whole, atol=1e-6, rtol=0)
    # The control: another part's rows are something else.
    assert not torch.allclose(whole[:2], whole[4:6], atol=1e-3)
