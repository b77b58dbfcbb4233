"""Forwards over packed rows, captured in CUDA graphs: one for each of a few numbers of rows.

A step of a big model is hundreds of small kernels, and launching them one by one takes longer than
running them. A graph launches all of them at once, but over the same memory and with the same
shapes each time: so a step's numbers go into a buffer that never moves, and its rows are padded to
the next bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from kernels.tree_attention import TILE_ROWS
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.ragged import RaggedBuffer, RaggedRows, RaggedSize
from smart_serve.paging.rows import PackedStep

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Packed rows. A third more rows than asked for at most, where the rows and not the weights are
what costs; beyond the last one a step is long enough for its launches to hide behind it."""
WORDS = 8
"""Trees of up to 512 rows; what is wider, is not captured."""
WARM_UPS = 2
"""Runs before a capture: kernels are compiled and workspaces found in the first."""

ResultT = TypeVar("ResultT")
Replay = Callable[[], None]


class Capture(Protocol[ResultT]):
    """Of a forward over fixed memory: where its results will stand, and what makes them new."""

    def __call__(
        self, forward: Callable[[PackedStep], ResultT], step: PackedStep, /
    ) -> tuple[ResultT, Replay]: ...


class Buckets(Generic[ResultT]):
    """One forward, by the number of rows that it is captured for."""

    def __init__(
        self,
        cache: KvCache,
        *,
        axes: int,
        max_slots: int,
        max_sequences: int | None = None,
        capture: Capture[ResultT] | None = None,
    ) -> None:
        """`axes` of the rows' positions; no sequence has more slots than `max_slots`, and no step
        more sequences than `max_sequences` (None: than rows)."""
        self.rows = BUCKETS
        """Numbers of rows, rising."""
        self._cache = cache
        self._axes = axes
        self._max_sequences = max_sequences or self.rows[-1]
        self._max_slots = max_slots
        self._capture: Capture[ResultT] = capture or CudaCapture()
        self._buckets: list[Bucket[ResultT]] = []

    @torch.inference_mode()
    def capture(
        self,
        forward: Callable[[PackedStep], ResultT],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Anew, whatever there was; `progress` is told (done, total)."""
        self._buckets.clear()
        # The largest first: the others find their memory in what it has freed.
        for done, rows in enumerate(reversed(self.rows), start=1):
            bucket = Bucket(self._cache, self._size(rows), self._max_slots, forward, self._capture)
            self._buckets.insert(0, bucket)
            if progress is not None:
                progress(done, len(self.rows))

    def find(self, size: RaggedSize) -> Bucket[ResultT] | None:
        """The smallest that holds such a step."""
        return next((one for one in self._buckets if one.size.holds(size)), None)

    def _size(self, rows: int) -> RaggedSize:
        sequences = min(rows, self._max_sequences) + 1  # the last one is padding
        blocks_each = -(-self._max_slots // self._cache.block_tokens)
        return RaggedSize(
            axes=self._axes,
            rows=rows,
            words=WORDS,
            tiles=rows // TILE_ROWS + sequences,
            sequences=sequences,
            # Sequences that share prefixes name more blocks than there are; seldom twice as many.
            blocks=min(sequences * blocks_each, 2 * self._cache.num_blocks),
        )


class Bucket(Generic[ResultT]):
    """One captured forward and the memory that it reads: `fill`, then `replay`."""

    def __init__(
        self,
        cache: KvCache,
        size: RaggedSize,
        max_slots: int,
        forward: Callable[[PackedStep], ResultT],
        capture: Capture[ResultT],
    ) -> None:
        self.size = size
        self._buffer = RaggedBuffer(size, cache.keys[0].device)
        packed = self._buffer.packed(cache, np.zeros(1, np.int64), max_slots)
        self._packed = packed
        self._buffer.fill(None)
        self._result, self._replay = capture(forward, packed)

    def fill(self, step: RaggedRows) -> PackedStep:
        """Its rows come first, and behind them padding. It stands until the next `fill`."""
        self._buffer.fill(step)
        return replace(self._packed, first_rows=step.first_rows)

    def replay(self) -> ResultT:
        """Of all rows, padding included. It stands until the next `replay`."""
        self._replay()
        return self._result


class CudaCapture(Generic[ResultT]):
    """Captures into CUDA graphs that share their working memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(
        self, forward: Callable[[PackedStep], ResultT], step: PackedStep
    ) -> tuple[ResultT, Replay]:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                forward(step)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = forward(step)
        return result, graph.replay
