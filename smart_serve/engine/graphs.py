"""Forwards captured in CUDA graphs, one for each of a few numbers of packed rows.

A decode or verify step of a big model is hundreds of small kernels, and launching them one by one
takes longer than running them. A graph launches all of them at once, but over the same memory and
with the same shapes each time: so a step's numbers go into a buffer that never moves, and its rows
are padded to the next bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from kernels.tree_attention import TILE_ROWS
from smart_serve.engine.forward import EagerForward, ImageRows, RowGroups
from smart_serve.models.target import Hidden, TargetModel
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.ragged import RaggedBuffer, RaggedRows, RaggedSize, ragged_rows
from smart_serve.paging.rows import PackedStep
from smart_serve.progress import show_progress

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Packed rows. A third more rows than asked for at most, where the rows and not the weights are
what costs; beyond the last one a step is long enough for its launches to hide behind it."""
WORDS = 8
"""Trees of up to 512 rows; what is wider, is not captured."""
WARM_UPS = 2
"""Runs before a capture: kernels are compiled and workspaces found in the first."""

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Hidden]], tuple[Hidden, Replay]]
"""Of a forward over fixed memory: where its results will stand, and what makes them new."""


class GraphedForward:
    """Steps that fit a bucket run as its graph, all others eagerly."""

    def __init__(
        self,
        model: TargetModel,
        cache: KvCache,
        max_sequences: int,
        *,
        capture: Capture | None = None,
        progress: bool = False,
    ) -> None:
        self._model = model
        self._cache = cache
        self._max_sequences = max_sequences
        self._capture = capture or CudaCapture()
        self._progress = progress
        self._eager = EagerForward(model, cache)
        self._buckets: list[_Bucket] = []
        self._captured_layers: tuple[int, ...] | None = None

    @property
    def stairs(self) -> tuple[int, ...]:
        return BUCKETS

    @torch.inference_mode()
    def prepare(self) -> None:
        if self._captured_layers == self._model.captured_layers:
            return
        self._buckets.clear()
        # The largest first: the others find their memory in what it has freed.
        for done, rows in enumerate(reversed(BUCKETS), start=1):
            size = self._size(rows)
            self._buckets.insert(0, _Bucket(self._model, self._cache, size, self._capture))
            if self._progress:
                show_progress("capturing the target's graphs", done, len(BUCKETS))
        self._captured_layers = self._model.captured_layers

    def run(self, groups: RowGroups, images: ImageRows) -> tuple[PackedStep, Hidden]:
        if images:
            return self._eager.run(groups, images)
        step = ragged_rows([rows for group in groups for rows in group], self._cache.block_tokens)
        bucket = next((b for b in self._buckets if b.size.holds(step.size)), None)
        return self._eager.run(groups, images) if bucket is None else bucket.run(step)

    def _size(self, rows: int) -> RaggedSize:
        sequences = min(rows, self._max_sequences) + 1  # the last one is padding
        blocks_each = -(-self._model.max_context // self._cache.block_tokens)
        return RaggedSize(
            axes=3 if self._model.has_mrope else 1,
            rows=rows,
            words=WORDS,
            tiles=rows // TILE_ROWS + sequences,
            sequences=sequences,
            # Sequences that share prefixes name more blocks than there are; seldom twice as many.
            blocks=min(sequences * blocks_each, 2 * self._cache.num_blocks),
        )


class _Bucket:
    """One captured forward."""

    def __init__(
        self, model: TargetModel, cache: KvCache, size: RaggedSize, capture: Capture
    ) -> None:
        self.size = size
        self._buffer = RaggedBuffer(size, model.device)
        packed = self._buffer.packed(cache, np.zeros(1, np.int64), model.max_context)
        self._packed = packed
        self._buffer.fill(None)
        self._hidden, self._replay = capture(
            lambda: model.forward(model.embed(packed.token_ids), packed.positions, packed.attention)
        )

    def run(self, step: RaggedRows) -> tuple[PackedStep, Hidden]:
        self._buffer.fill(step)
        self._replay()
        rows = step.size.rows
        hidden = Hidden(self._hidden.last[:rows], self._hidden.features[:rows])
        return replace(self._packed, first_rows=step.first_rows), hidden


class CudaCapture:
    """Captures into CUDA graphs that share their working memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Callable[[], Hidden]) -> tuple[Hidden, Replay]:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                forward()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden = forward()
        return hidden, graph.replay
