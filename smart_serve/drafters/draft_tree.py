"""One sequence's draft tree on its way: what the cache holds of it, and which row sees which."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from smart_serve.drafters.protocol import DraftInput
from smart_serve.paging.rows import Ints, Rows

Mask = NDArray[np.bool_]


@dataclass(slots=True)
class Held:
    """What a drafter holds of one sequence."""

    blocks: list[int] = field(default_factory=list)
    num_rows: int = 0
    next_start: int = 0
    """Draft position of the next input; beyond `num_rows` where the network skips tokens."""


@dataclass(slots=True)
class DraftTree:
    """Newly committed rows, the last of which is the root, and the nodes expanded so far."""

    held: Held
    item: DraftInput
    token_ids: Ints  # [n] of the committed rows that are to be run
    positions: Ints | None  # [3, n] of the committed rows under M-RoPE; None: they are counted
    visible: Mask = field(default_factory=lambda: np.zeros((0, 0), np.bool_))
    """[rows, rows] what each expanded node sees of them, in cache order."""
    is_committed: bool = False

    @property
    def num_rows(self) -> int:
        """Cache rows in use, once the committed ones are run."""
        return self.held.num_rows + len(self.visible)

    def commit(self) -> Rows:
        """The committed rows, causal; they are held from now on."""
        before, n = self.held.num_rows, len(self.token_ids)
        if self.positions is None:
            self.positions = before + np.arange(n)
        self.held.num_rows += n
        self.held.next_start += len(self.item.token_ids)
        self.is_committed = True
        return Rows(
            blocks=self.held.blocks,
            num_committed=before,
            token_ids=self.token_ids,
            positions=self.positions,
            visible=np.tri(n, dtype=np.bool_),
        )

    def rewind(self) -> None:
        """The committed rows are held no more: the input may be sent again."""
        if self.is_committed:
            self.held.num_rows -= len(self.token_ids)
            self.held.next_start -= len(self.item.token_ids)
            self.is_committed = False

    def expand(self, token_ids: Ints, parents: Ints | None, depth: int) -> Rows:
        """Rows of new nodes [n] of one depth below the expanded nodes `parents` (None: the root).

        They are numbered on from those expanded before.
        """
        count = len(token_ids)
        assert self.positions is not None
        root = self.positions[..., -1:]
        self.visible = _add_rows(self.visible, parents, count)
        return Rows(
            blocks=self.held.blocks,
            num_committed=self.held.num_rows,
            token_ids=token_ids,
            positions=np.repeat(root + depth, count, axis=-1),
            visible=self.visible[-count:],
        )


def _add_rows(visible: Mask, parents: Ints | None, count: int) -> Mask:
    """[r + count, r + count]: new rows see their parent's ancestors, the parent, and themselves."""
    size = len(visible)
    grown = np.zeros((size + count, size + count), np.bool_)
    grown[:size, :size] = visible
    if parents is not None:
        grown[size:, :size] = visible[parents]
    grown[np.arange(size, size + count), np.arange(size, size + count)] = True
    return grown
