"""Move the accepted path of every draft tree to the front of its sequence's free slots.

Tree row r of a sequence with L committed tokens wrote its keys and values to position L + r. When
the path r_1 < r_2 < … is accepted, position L + i must hold row r_i:

    cache[:, target[j]] = cache[:, source[j]]    for all moves j at once
"""

from __future__ import annotations

import torch


def kv_commit(cache: torch.Tensor, source_slots: torch.Tensor, target_slots: torch.Tensor) -> None:
    """In place. cache [planes, slots, H_kv, D], a plane being one layer's keys or values; both slot
    lists [J] int64.

    Sources are read before anything is written: a path may overlap the place it moves to.
    """
    if source_slots.numel() > 0:
        cache.index_copy_(1, target_slots, cache.index_select(1, source_slots))
