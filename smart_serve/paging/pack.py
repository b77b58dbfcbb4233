"""Rows of one forward, packed as the device likes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.padded import pack_padded
from smart_serve.paging.ragged import pack_ragged
from smart_serve.paging.rows import PackedStep, Rows, joined


def pack_rows(groups: Sequence[Rows], cache: KvCache, like: torch.Tensor) -> PackedStep:
    """The groups one after another, for a forward in the dtype and on the device of `like`.

    On a CPU each group is padded to its longest member, so members should be of similar length.
    """
    if like.is_cuda:
        return pack_ragged(joined(groups), cache)
    return pack_padded(groups, cache, like)
