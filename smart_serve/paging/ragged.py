"""Rows packed for a GPU: ragged, in one buffer of whole numbers that goes over in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernels.tree_attention import TILE_ROWS, RaggedAttention
from smart_serve.models.attention_step import AttentionStep
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import Ints, PackedStep, Rows

WORD_BITS = 64


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
        self._lengths = [int(np.prod(shape)) for shape in size.shapes]
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(sum(self._lengths), dtype=torch.int64, pin_memory=on_gpu)
        self._device = torch.zeros(sum(self._lengths), dtype=torch.int64, device=device)
        parts = self._device.split(self._lengths)
        views = [part.view(shape) for part, shape in zip(parts, size.shapes, strict=True)]
        self._token_ids, self._positions, self._slots = views[:3]
        self._prefixes, self._ancestors, self._tiles, self._sequences, self._blocks = views[3:]

    def fill(self, step: RaggedRows | None) -> None:
        """Send `step` to the device, without waiting for it.

        Rows beyond it (all of them for None) are padding: they write to block 0 and see nothing.
        """
        host = self._host.numpy()
        fixed = len(host) - self._lengths[-1]
        host[:fixed] = 0  # a few kilobytes, against stale numbers in unused places
        flat = np.split(host, np.cumsum(self._lengths)[:-1])
        parts = [part.reshape(shape) for part, shape in zip(flat, self.size.shapes, strict=True)]
        used = RaggedSize(self.size.axes, 0, 0, 0, 0, 0)
        if step is not None:
            used = step.size
            for part, own in zip(parts, step.parts, strict=True):
                part[tuple(slice(length) for length in own.shape)] = own
        *_, tiles, sequences, _ = parts
        if self.size.sequences > used.sequences:
            # Everything that is left over belongs to a sequence without slots.
            sequences[used.sequences, 0] = self.size.rows
            tiles[used.tiles :, 0] = used.sequences
            tiles[used.tiles :, 1] = used.rows + TILE_ROWS * np.arange(len(tiles) - used.tiles)
        sent = fixed + used.blocks
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


def pack_ragged(rows: Sequence[Rows], cache: KvCache) -> PackedStep:
    """One forward over `rows`, on the cache's device, in memory of its own."""
    step = ragged_rows(rows, cache.block_tokens)
    buffer = RaggedBuffer(step.size, cache.keys[0].device)
    buffer.fill(step)
    return buffer.packed(cache, step.first_rows, max(r.num_slots for r in rows))


def ragged_rows(rows: Sequence[Rows], block_tokens: int) -> RaggedRows:
    """The numbers of one forward over `rows`, in the same order."""
    lengths = np.asarray([len(r.token_ids) for r in rows])
    num_slots = np.asarray([r.num_slots for r in rows])
    committed = np.asarray([r.num_committed for r in rows])
    first_rows = np.concatenate(([0], np.cumsum(lengths)))
    blocks_each = -(-num_slots // block_tokens)
    table_starts = np.concatenate(([0], np.cumsum(blocks_each)))
    blocks = np.concatenate(
        [np.asarray(r.blocks[:n], np.int64) for r, n in zip(rows, blocks_each, strict=True)]
    )
    sequence_of = np.repeat(np.arange(len(rows)), lengths)
    row_in = np.arange(first_rows[-1]) - first_rows[sequence_of]
    slot_positions = (num_slots - lengths)[sequence_of] + row_in
    block_of = blocks[table_starts[sequence_of] + slot_positions // block_tokens]
    tiles_each = -(-lengths // TILE_ROWS)
    tile_of = np.repeat(np.arange(len(rows)), tiles_each)
    first_tiles = np.concatenate(([0], np.cumsum(tiles_each)))
    tile_in = np.arange(first_tiles[-1]) - first_tiles[tile_of]
    runs, ancestors = _window_bits(rows, first_rows)
    return RaggedRows(
        token_ids=np.concatenate([r.token_ids for r in rows]),
        positions=np.concatenate([np.atleast_2d(r.positions) for r in rows], axis=1),
        slots=block_of * block_tokens + slot_positions % block_tokens,
        prefixes=committed[sequence_of] + runs,
        ancestors=ancestors,
        tiles=np.stack((tile_of, first_rows[tile_of] + TILE_ROWS * tile_in), axis=1),
        sequences=np.stack((first_rows[1:], committed, num_slots, table_starts[:-1]), axis=1),
        blocks=blocks,
        first_rows=first_rows,
    )


def _window_bits(rows: Sequence[Rows], first_rows: Ints) -> tuple[Ints, Ints]:
    """Of what each row sees beyond the committed slots: how many come without a gap [N], and all
    of it in bits [N, W]. Causal rows have no gap and need no bits, however many there are."""
    widths = [r.visible.shape[1] for r in rows]
    columns = WORD_BITS * (max(widths) // WORD_BITS + 1)  # the last one stays empty
    seen = np.zeros((int(first_rows[-1]), columns), np.bool_)
    for first, width, r in zip(first_rows, widths, rows, strict=False):
        seen[first : first + len(r.visible), :width] = r.visible
    runs = seen.argmin(axis=1)
    has_gap = np.logical_or.reduceat(seen.sum(axis=1) > runs, first_rows[:-1])
    widest = int(max(np.asarray(widths)[has_gap], default=1))
    words = -(-widest // WORD_BITS)
    packed = np.packbits(seen[:, : words * WORD_BITS], axis=1, bitorder="little")
    return runs, packed.view("<i8")
