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
        """Keys of the first `num_blocks` blocks; tokens never change, so each is made once."""
        keys = sequence.block_keys
        while len(keys) < num_blocks:
            keys.append(self._next(sequence))
        return keys[:num_blocks]

    def _next(self, sequence: Sequence) -> bytes:
        keys = sequence.block_keys
        start = len(keys) * self._block_tokens
        end = start + self._block_tokens
        before = keys[-1] if keys else bytes(32)
        digest = hashlib.blake2b(before, digest_size=32, key=self._secret)
        digest.update(np.asarray(sequence.tokens[start:end], np.int64).tobytes())
        for span in sequence.request.image_spans:
            if span.start < end and start < span.start + span.length:
                place = (span.start - start, span.length, span.grid, span.content_hash)
                digest.update(f"{place}\n".encode())
        return digest.digest()
