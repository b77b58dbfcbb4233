"""Where the end of a token sequence occurred before in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MIN_MATCH = 2
"""Tokens of the shortest match (transformers' prompt lookup default): one token says too little."""
MAX_MATCH = 16
"""Tokens beyond which a longer match says no more about what follows. Plain prompt lookup stops at
3 (its reference form) or 4 (vLLM's examples), where every match of that length is alike."""
MAX_LINKS = 16
"""Earlier places that one look compares, most recent first, so that its time is bounded."""


@dataclass(frozen=True, slots=True)
class Match:
    """The last `length` tokens also stand before position `next`."""

    next: int
    length: int


class SuffixIndex:
    """Tokens, and for each the last earlier place that ends alike: LZ77's hash chains.

    Adding a token is one dictionary entry; memory is a few words a token.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._newest: dict[tuple[int, ...], int] = {}
        self._earlier: list[int | None] = []
        """Per position, the last one before it that ends with the same `MIN_MATCH` tokens."""

    def extend(self, token_ids: Iterable[int]) -> None:
        for token in token_ids:
            self.tokens.append(token)
            place = len(self.tokens) - 1
            key = tuple(self.tokens[-MIN_MATCH:])
            self._earlier.append(self._newest.get(key))
            self._newest[key] = place

    def matches(self) -> list[Match]:
        """Earlier places of the longest ends, most recent first; none for a new end."""
        found: list[Match] = []
        place = self._earlier[-1] if len(self.tokens) > MIN_MATCH else None
        for _ in range(MAX_LINKS):
            if place is None:
                break
            found.append(Match(place + 1, self._length(place)))
            place = self._earlier[place]
        return found

    def _length(self, place: int) -> int:
        """Tokens up to `place` that equal those at the end; at most `MAX_MATCH`."""
        tokens, last = self.tokens, len(self.tokens) - 1
        length = MIN_MATCH
        while (
            length < min(MAX_MATCH, place + 1) and tokens[place - length] == tokens[last - length]
        ):
            length += 1
        return length
