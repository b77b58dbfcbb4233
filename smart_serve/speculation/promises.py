"""How much of the speedup that was predicted for drafting its steps then keep.

The prediction is made for trees of typical shape; what is grown, and what that costs, differs by
some per cent, always to the same side. Near a speedup of 1 these decide. And a drafter that has
become worse brings fewer tokens than its trees were believed to: calibration learns that too, but
bin by bin and far more slowly.
"""

from __future__ import annotations

import math

WEIGHT = 0.05
"""Of one drafted step."""
CLIP = 1.5
"""One stalled step must not end drafting."""
FORGET = 0.99
"""Per look while decoding plainly: in some 500 steps drafting gets half of its credit back, so that
one bad time does not end it for good."""

FORGET_TOKENS = 0.998
"""The same of what trees bring, which probes tell too."""


class Promises:
    """Kept over promised speedup, per batch size (powers of two). Owned by one controller."""

    def __init__(self) -> None:
        self._log_kept: dict[int, float] = {}
        self._tokens: dict[int, tuple[float, float]] = {}
        """Of a sequence's step: those that came, and those that were expected."""

    def factor(self, batch: int) -> float:
        """What a prediction for this batch is to be multiplied by."""
        came, expected = self._tokens.get(batch.bit_length(), (1.0, 1.0))
        return math.exp(self._log_kept.get(batch.bit_length(), 0.0)) * came / expected

    def observe(self, batch: int, promised: float, kept: float) -> None:
        """Speedups of a drafted step."""
        ratio = min(max(kept / max(promised, 1e-9), 1 / CLIP), CLIP)
        old = self._log_kept.get(batch.bit_length(), 0.0)
        self._log_kept[batch.bit_length()] = old + WEIGHT * (math.log(ratio) - old)

    def observe_tokens(self, batch: int, came: float, expected: float) -> None:
        """Of all sequences of a drafted step, bonus tokens included. Means of each, and not of
        their ratio: what single steps bring varies by as much as it is."""
        old_came, old_expected = self._tokens.get(batch.bit_length(), (expected / batch,) * 2)
        self._tokens[batch.bit_length()] = (
            old_came + WEIGHT * (came / batch - old_came),
            old_expected + WEIGHT * (expected / batch - old_expected),
        )

    def forget(self, batch: int) -> None:
        """Nothing was drafted, so nothing is known of how it is now."""
        region = batch.bit_length()
        if region in self._log_kept:
            self._log_kept[region] *= FORGET
        if region in self._tokens:
            came, expected = self._tokens[region]
            self._tokens[region] = came + (1.0 - FORGET_TOKENS) * (expected - came), expected
