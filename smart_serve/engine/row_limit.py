"""How large a step may be after the device's memory has run out."""

from __future__ import annotations

import logging
import sys

_LOG = logging.getLogger(__name__)
RETRY_STEPS = 256
"""Steps after which a full one is tried again: a few seconds. What took the memory may be gone by
then, and if it is not, the failed tries are lost among so many steps."""


class RowLimit:
    """Rows that one forward may have, draft nodes included: any number until one ran out of memory,
    and again after `RETRY_STEPS` steps that did not. Owned by the engine."""

    def __init__(self) -> None:
        self._max_rows = sys.maxsize
        self._num_steps = 0

    @property
    def is_set(self) -> bool:
        return self._max_rows < sys.maxsize

    def room(self, num_rows: int) -> int:
        """Rows that a forward may have beyond `num_rows`; below 0, it is too large already."""
        return self._max_rows - num_rows

    def lower(self, max_rows: int) -> None:
        """A forward ran out of memory. Warns of the first one since the limit was lifted."""
        if not self.is_set:
            _LOG.warning("out of memory: steps are made smaller for a while")
        self._max_rows, self._num_steps = max_rows, 0

    def lift(self) -> None:
        self._max_rows = sys.maxsize

    def end_step(self) -> None:
        """A step was done."""
        self._num_steps += 1
        if self._num_steps >= RETRY_STEPS:
            self.lift()
