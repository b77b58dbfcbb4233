"""Names of prompt prefixes, by which a follow-up finds the replica that has its KV blocks.

A hint alone: the engine finds blocks by keys of its own, which no one else can compute.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from smart_serve.messages import ImageSpan, PrefixKey

FIRST_TOKENS = 32
"""Shorter prefixes take less time to compute than to look for."""
MAX_REMEMBERED = 128
"""Names that a replica tells of: those of its last fifty requests or so, in 1.2 KB."""


def prefix_keys(token_ids: Sequence[int], spans: Sequence[ImageSpan] = ()) -> tuple[PrefixKey, ...]:
    """Every prefix of a prompt that has a name, the longest first.

    Named are prefixes of 32, 48, 64, 96, 128, … tokens, so that two prompts agree on a name for two
    thirds or more of what they share, and those that end with a picture.
    """
    ends = sorted({*_marks(len(token_ids)), *(span.start + span.length for span in spans)})
    digest, done = hashlib.blake2b(digest_size=8), 0
    keys: list[PrefixKey] = []
    for end in ends:
        digest.update(np.asarray(token_ids[done:end], np.int64).tobytes())
        for span in spans:
            if done <= span.start < end:
                digest.update(span.content_hash.encode())
        done = end
        # Read here and updated further: the name of a prefix depends on all before it.
        keys.append(PrefixKey(end, int.from_bytes(digest.digest(), "big")))
    return tuple(reversed(keys))


class RecentPrefixes:
    """What one replica served lately, the latest last. Bounded."""

    def __init__(self) -> None:
        self._names: dict[int, None] = {}

    def note(self, token_ids: Sequence[int], spans: Sequence[ImageSpan]) -> None:
        """A prompt's longest name and that of its last picture: a follow-up goes on from one of
        them. What many prompts begin with is soon everywhere, and needs no finding."""
        last_picture = max((span.start + span.length for span in spans), default=0)
        for place, key in enumerate(prefix_keys(token_ids, spans)):
            if place == 0 or key.num_tokens == last_picture:
                self._names.pop(key.name, None)
                self._names[key.name] = None
        while len(self._names) > MAX_REMEMBERED:
            del self._names[next(iter(self._names))]

    def names(self) -> tuple[int, ...]:
        return tuple(self._names)


def _marks(num_tokens: int) -> Iterator[int]:
    mark = FIRST_TOKENS
    while mark <= num_tokens:
        yield mark
        if mark * 3 // 2 <= num_tokens:
            yield mark * 3 // 2
        mark *= 2
