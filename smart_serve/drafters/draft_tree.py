"""One sequence's draft tree on its way: what the cache holds of it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from smart_serve.drafters.protocol import DraftInput
from smart_serve.paging.rows import Ints


@dataclass(slots=True)
class Held:
    """What a drafter holds of one sequence."""

    blocks: array[int] = field(default_factory=lambda: array("q"))
    num_rows: int = 0
    next_start: int = 0
    """Draft position of the next input; beyond `num_rows` where the network skips tokens."""


@dataclass(slots=True)
class DraftTree:
    """Newly committed rows, the last of which is the root, and how many nodes were expanded."""

    held: Held
    item: DraftInput
    token_ids: Ints  # [n] of the committed rows that are to be run
    positions: Ints | None  # [3, n] of the committed rows under M-RoPE; None: they are counted
    num_expanded: int = 0
    is_committed: bool = False

    @property
    def num_rows(self) -> int:
        """Cache rows in use, once the committed ones are run."""
        return self.held.num_rows + self.num_expanded

    def commit(self) -> None:
        """The committed rows are held from now on."""
        self.held.num_rows += len(self.token_ids)
        self.held.next_start += len(self.item.token_ids)
        self.is_committed = True

    def rewind(self) -> None:
        """The committed rows are held no more: the input may be sent again."""
        if self.is_committed:
            self.held.num_rows -= len(self.token_ids)
            self.held.next_start -= len(self.item.token_ids)
            self.is_committed = False
