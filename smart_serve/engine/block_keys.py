"""What a KV block's contents depend on, as a key under which others find the block."""

from __future__ import annotations

import hashlib
import secrets

import numpy as np

from smart_serve.engine.sequence import Sequence


class BlockKeys:
    """Keys of sequences' full blocks: equal keys, equal keys and values in the cache.

    A block's key is a BLAKE2b digest of 256 bits over the key of the block before it, the block's
    token ids, and content hash, grid and place of every picture that reaches into it. Equal token
    ids with another picture thus have another key. The digest is keyed with a secret of this
    process: no one outside can search for two prompts with the same key, nor tell one by it.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._secret = secrets.token_bytes(32)

    def of(self, sequence: Sequence, num_blocks: int) -> list[bytes]:
        """Keys of at least the first `num_blocks` blocks: all that were made so far, for tokens
        never change."""
        keys, size = sequence.block_keys, self._block_tokens
        first = len(keys) * size
        new = np.asarray(sequence.tokens[first : num_blocks * size], np.int64).tobytes()
        for i in range(0, len(new), 8 * size):
            digest = hashlib.blake2b(
                keys[-1] if keys else bytes(32), digest_size=32, key=self._secret
            )
            digest.update(new[i : i + 8 * size])
            digest.update(_pictures(sequence, len(keys) * size, size))
            keys.append(digest.digest())
        return keys


def _pictures(sequence: Sequence, start: int, length: int) -> bytes:
    """What of the request's pictures falls into tokens start .. start + length - 1."""
    return b"".join(
        f"{(span.start - start, span.length, span.grid, span.content_hash)}\n".encode()
        for span in sequence.request.image_spans
        if span.start < start + length and start < span.start + span.length
    )
