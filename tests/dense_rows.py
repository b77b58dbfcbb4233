"""Rows of a forward from dense masks: the plainest way to say who sees whom."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smart_serve.paging.rows import WORD_BITS, Ints, Rows, words_for

Mask = NDArray[np.bool_]


def dense_rows(
    blocks: list[int], num_committed: int, token_ids: Ints, positions: Ints, visible: Mask
) -> Rows:
    """One sequence's. `positions` [n]; `visible` [n, m + n]: what each row sees beyond the
    committed tokens: m rows of earlier passes over the same tree, then these rows."""
    n, num_seen = visible.shape
    bits = np.zeros((n, WORD_BITS * words_for(num_seen)), np.bool_)
    bits[:, :num_seen] = visible
    return Rows(
        blocks=[blocks],
        first_rows=np.array([0, n]),
        num_committed=np.array([num_committed]),
        num_slots=np.array([num_committed + num_seen]),
        token_ids=token_ids,
        positions=positions[None],
        prefixes=np.full(n, num_committed),
        ancestors=np.packbits(bits, axis=1, bitorder="little").view("<i8"),
    )


def seen_by(rows: Rows) -> Mask:
    """[N, most slots of a sequence] which of its sequence's slots each row sees."""
    bits = np.unpackbits(rows.ancestors.view(np.uint8), axis=1, bitorder="little").view(np.bool_)
    slots = np.arange(int(rows.num_slots.max()))
    ahead = slots - rows.num_committed[rows.sequence_of][:, None]
    named = np.take_along_axis(bits, np.clip(ahead, 0, bits.shape[1] - 1), axis=1)
    seen: Mask = (slots < rows.prefixes[:, None]) | (named & (ahead >= 0) & (ahead < bits.shape[1]))
    return seen
