"""Rows packed for a GPU: ragged, in one buffer of whole numbers that goes over in one copy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kernels.tree_attention import TILE_ROWS, RaggedAttention
from smart_serve.models.attention_step import AttentionStep
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import Ints, PackedStep, Rows


@dataclass(frozen=True, slots=True)
class RaggedRows:
    """The rows of one step on the host; names and shapes as in `RaggedAttention`."""

    token_ids: Ints  # [N]
    positions: Ints  # [axes, N]
    slots: Ints  # [N]
    prefixes: Ints  # [N]
    ancestors: Ints  # [N, W]
    tiles: Ints  # [T, 2]
    sequences: Ints  # [B, 4]
    blocks: Ints  # [.]
    first_rows: Ints  # [B + 1]

    @property
    def parts(self) -> tuple[Ints, ...]:
        """In the order of `RaggedSize.shapes`."""
        rows = (self.token_ids, self.positions, self.slots, self.prefixes, self.ancestors)
        return (*rows, self.tiles, self.sequences, self.blocks)

    @property
    def size(self) -> RaggedSize:
        axes, rows = self.positions.shape
        words = self.ancestors.shape[1]
        return RaggedSize(axes, rows, words, len(self.tiles), len(self.sequences), len(self.blocks))


@dataclass(frozen=True, slots=True)
class RaggedSize:
    """How much one buffer holds."""

    axes: int
    rows: int
    words: int
    tiles: int
    sequences: int
    blocks: int

    def holds(self, step: RaggedSize) -> bool:
        """Whether a step of size `step` fits, with a sequence of padding rows beside it."""
        padding_tiles = -(-(self.rows - step.rows) // TILE_ROWS)
        return (
            self.axes == step.axes
            and self.rows >= step.rows
            and self.words >= step.words
            and self.tiles >= step.tiles + padding_tiles
            and self.sequences > step.sequences
            and self.blocks >= step.blocks
        )

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the buffer's parts. The block tables come last: only what is used of them is sent."""
        n = self.rows
        fixed = ((n,), (self.axes, n), (n,), (n,), (n, self.words))
        return (*fixed, (self.tiles, 2), (self.sequences, 4), (self.blocks,))


class RaggedBuffer:
    """Host and device memory for steps up to one size; the device side never moves."""

    def __init__(self, size: RaggedSize, device: torch.device) -> None:
        self.size = size
        lengths = [int(np.prod(shape)) for shape in size.shapes]
        self._num_fixed = sum(lengths[:-1])
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(sum(lengths), dtype=torch.int64, pin_memory=on_gpu)
        self._device = torch.zeros(sum(lengths), dtype=torch.int64, device=device)
        self._numbers = self._host.numpy()
        self._parts = [
            part.view(shape).numpy()
            for part, shape in zip(self._host.split(lengths), size.shapes, strict=True)
        ]
        parts = self._device.split(lengths)
        views = [part.view(shape) for part, shape in zip(parts, size.shapes, strict=True)]
        self._token_ids, self._positions, self._slots = views[:3]
        self._prefixes, self._ancestors, self._tiles, self._sequences, self._blocks = views[3:]

    def fill(self, step: RaggedRows | None) -> None:
        """Send `step` to the device, without waiting for it.

        Rows beyond it (all of them for None) are padding: they write to block 0 and see nothing.
        """
        # A few kilobytes, against stale numbers in unused places.
        self._numbers[: self._num_fixed] = 0
        used = RaggedSize(self.size.axes, 0, 0, 0, 0, 0)
        if step is not None:
            used = step.size
            for part, own in zip(self._parts, step.parts, strict=True):
                if own.ndim == 1:
                    part[: len(own)] = own
                else:
                    part[: own.shape[0], : own.shape[1]] = own
        *_, tiles, sequences, _ = self._parts
        if self.size.sequences > used.sequences:
            # Everything that is left over belongs to a sequence without slots.
            sequences[used.sequences, 0] = self.size.rows
            tiles[used.tiles :, 0] = used.sequences
            tiles[used.tiles :, 1] = used.rows + TILE_ROWS * np.arange(len(tiles) - used.tiles)
        sent = self._num_fixed + used.blocks
        self._device[:sent].copy_(self._host[:sent], non_blocking=True)

    def packed(self, cache: KvCache, first_rows: Ints, max_slots: int) -> PackedStep:
        """What is in the buffer when the device gets to it; no sequence has more slots than
        `max_slots`."""
        attention = RaggedAttention(
            tiles=self._tiles,
            sequences=self._sequences,
            blocks=self._blocks,
            prefixes=self._prefixes,
            ancestors=self._ancestors,
            max_slots=max_slots,
        )
        positions = self._positions[0] if self.size.axes == 1 else self._positions
        step = AttentionStep(cache.keys, cache.values, self._slots, attention)
        return PackedStep(self._token_ids, positions, step, first_rows)


def pack_ragged(rows: Rows, cache: KvCache) -> PackedStep:
    """One forward over `rows`, on the cache's device, in memory of its own."""
    step = ragged_rows(rows, cache.block_tokens)
    buffer = RaggedBuffer(step.size, cache.keys[0].device)
    buffer.fill(step)
    return buffer.packed(cache, step.first_rows, int(rows.num_slots.max()))


def ragged_rows(rows: Rows, block_tokens: int) -> RaggedRows:
    """The numbers of one forward over `rows`, in the same order."""
    tables = rows.tables(block_tokens)
    firsts, ends = rows.first_rows[:-1], rows.first_rows[1:]
    return RaggedRows(
        token_ids=rows.token_ids,
        positions=rows.positions,
        slots=rows.slots(tables, block_tokens),
        prefixes=rows.prefixes,
        ancestors=rows.ancestors,
        tiles=_tiles(firsts, rows.lengths),
        sequences=np.array((ends, rows.num_committed, rows.num_slots, tables[1])).T,
        blocks=tables[0],
        first_rows=rows.first_rows,
    )


def _tiles(first_rows: Ints, lengths: Ints) -> Ints:
    """[T, 2] of sequences that begin at `first_rows` and are so long: sequence, first row."""
    counts = -(-lengths // TILE_ROWS)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    # Tiles of a sequence are counted from its first one.
    place = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.array((sequence, first_rows[sequence] + TILE_ROWS * place)).T
