"""What all replicas have learnt of the drafter, for those that have learnt nothing yet."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from smart_serve.messages import CalibrationCounts

MOST_TEACHERS = 256
"""Replicas whose counts are kept; more would teach nothing new."""
NEWCOMER_STEPS = 32
"""Drafted steps after which a replica goes by what it sees itself."""


class SharedCalibration:
    """Owned by one router. Counts of replicas that are gone stay: an application that was scaled to
    zero does not start blind."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, CalibrationCounts] = OrderedDict()
        self._merged: dict[int, CalibrationCounts] = {}
        """By size, since trees of another depth have other counts; of `_counts` as they are now."""

    def learn(self, replica: str, counts: CalibrationCounts) -> None:
        """A replica's newer counts replace its older ones."""
        self._counts[replica] = counts
        self._counts.move_to_end(replica)
        if len(self._counts) > MOST_TEACHERS:
            self._counts.popitem(last=False)
        self._merged.clear()

    def merged(self, size: int) -> CalibrationCounts | None:
        """Sum over the replicas whose counts have `size` bytes; None: there is none."""
        if size not in self._merged:
            alike = [one for one in self._counts.values() if one.size == size]
            if not alike:
                return None
            seen, accepted = (
                np.sum([np.frombuffer(data, np.float32) for data in column], axis=0, dtype=float)
                for column in zip(*((one.seen, one.accepted) for one in alike), strict=True)
            )
            self._merged[size] = CalibrationCounts(
                seen.astype(np.float32).tobytes(), accepted.astype(np.float32).tobytes()
            )
        return self._merged[size]
