"""Move the accepted path of every draft tree to the front of its sequence's free slots.

Row r of a tree wrote its keys and values to slots[first + r]; row 0 is its root. When the path
r_1 < r_2 < … is accepted, the i-th of them belongs where row i stands:

    cache[:, slots[first + i]] = cache[:, slots[first + r_i]]    for all i ≥ 1 at once
"""

from __future__ import annotations

import torch


def kv_commit(
    cache: torch.Tensor,
    slots: torch.Tensor,
    first_rows: torch.Tensor,
    paths: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """In place. cache [planes, slots, H_kv, D], a plane being one layer's keys or values.

    Of B trees: slots [N], first_rows [B + 1] (tree b owns first_rows[b] .. first_rows[b + 1] - 1),
    paths [B, D] of which the first lengths [B] rows count; all int64. Sources are read before
    anything is written: a path may overlap the place it moves to.
    """
    if cache.is_cuda:
        from kernels.gpu.kv import commit

        commit(cache, slots, first_rows, paths, lengths)
        return
    places = torch.arange(paths.shape[1]).expand_as(paths)
    is_real = places < lengths[:, None]
    first = first_rows[:-1, None].expand_as(paths)[is_real]
    source, target = slots[first + paths[is_real]], slots[first + places[is_real] + 1]
    is_moved = source != target
    if bool(is_moved.any()):
        moved = cache.index_select(1, source[is_moved])
        cache.index_copy_(1, target[is_moved], moved)
