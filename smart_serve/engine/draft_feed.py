"""Committed positions on their way to the drafter, read from token ids and the KV cache."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from smart_serve.drafters.protocol import DrafterInfo, DraftInput
from smart_serve.engine.sequence import Sequence
from smart_serve.messages import ImageSpan
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import causal_rows, picked


class DraftFeed:
    """Gives a drafter what it has not seen yet, in the form that it wants (`DraftInput`)."""

    def __init__(self, info: DrafterInfo, cache: KvCache) -> None:
        self._info = info
        self._cache = cache
        self._first_token = 1 if info.wants_vector_per_token else 0
        """Index of the token at draft position 0."""

    def num_new(self, sequence: Sequence) -> int:
        """Draft positions that the drafter has still to be sent."""
        return sequence.num_computed + 1 - self._first_token - sequence.draft.num_sent

    def can_catch_up(self, sequence: Sequence) -> bool:
        """Whether everything that it has to be sent is still there."""
        is_kept = sequence.draft.features_from <= sequence.draft.num_sent
        return is_kept or not self._info.wants_vector_per_token

    def inputs(self, asking: Seq[Sequence]) -> tuple[DraftInput, ...]:
        """Everything new of each sequence; from now on it counts as sent."""
        counts = [self.num_new(sequence) for sequence in asking]
        per_token = self._features(asking, counts) if self._info.wants_vector_per_token else None
        inputs = []
        for i, (sequence, count) in enumerate(zip(asking, counts, strict=True)):
            start = sequence.draft.num_sent
            first = start + self._first_token
            token_ids = np.asarray(sequence.tokens[first : first + count], np.int64)
            if per_token is None:
                vectors = self._images(sequence, first, count)
            else:
                vectors = per_token[i]
                if self._info.vectors == "hidden":
                    _place_images(vectors, sequence, first)
            rope = sequence.rope
            positions = None if rope is None else rope.at(first + np.arange(count))
            trace_parent = sequence.request.trace_parent if start == 0 else None
            inputs.append(
                DraftInput(sequence.id, start, token_ids, vectors, positions, trace_parent)
            )
            sequence.draft.num_sent, sequence.draft.is_open = start + count, True
        return tuple(inputs)

    def _features(self, asking: Seq[Sequence], counts: list[int]) -> tuple[torch.Tensor, ...]:
        """The kept features of each sequence's new positions, [n, F] each."""
        kept = self._cache.features
        assert kept is not None
        # Where those positions stand in the cache: as if they were written now.
        rows = causal_rows(
            blocks=[sequence.blocks for sequence in asking],
            num_committed=np.array([sequence.draft.num_sent for sequence in asking]),
            lengths=np.array(counts),
            token_ids=np.zeros(sum(counts), np.int64),
        )
        size = self._cache.block_tokens
        found = picked(kept, rows.slots(rows.tables(size), size))
        parts: tuple[torch.Tensor, ...] = found.split(counts)
        return parts

    def _images(self, sequence: Sequence, first: int, count: int) -> torch.Tensor | None:
        """Embeddings of the image tokens among tokens first .. first + count - 1, or None."""
        if self._info.vectors != "images":
            return None
        parts = [
            features[max(0, first - span.start) : max(0, first + count - span.start)]
            for span, features in _pictures(sequence)
        ]
        return torch.cat(parts) if sum(map(len, parts)) else None


def _place_images(vectors: torch.Tensor, sequence: Sequence, first: int) -> None:
    """Where x_{t+1} is an image token its projected embedding stands in h_t's place; row 0 of
    `vectors` [n, h] pairs with token `first`."""
    for span, features in _pictures(sequence):
        begin, end = max(span.start, first), min(span.start + span.length, first + len(vectors))
        if begin < end:
            part = features[begin - span.start : end - span.start]
            vectors[begin - first : end - first] = part.to(vectors)


def _pictures(sequence: Sequence) -> list[tuple[ImageSpan, torch.Tensor]]:
    return list(zip(sequence.request.image_spans, sequence.image_features, strict=True))
