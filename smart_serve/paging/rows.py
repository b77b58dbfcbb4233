"""Rows of one forward: ragged queries of many sequences, and how they stand when packed.

They are arrays over the whole batch and not objects a sequence: what the host does between two
steps, a device waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.to_device import to_device
from smart_serve.models.attention_step import AttentionStep

Ints = NDArray[np.int64]
Blocks = Sequence[int]
"""Of one sequence, in order; an `array` of 64-bit integers is read much faster than a list."""
WORD_BITS = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """Query rows of B sequences, one sequence after another; each writes its key and value to the
    last of its sequence's slots.

    A row sees slots of its own sequence: all below its prefix, and beyond the committed ones those
    that its bits name.
    """

    blocks: Sequence[Blocks]  # of each sequence, for its slots at least
    first_rows: Ints  # [B + 1] rows of sequence i: first_rows[i] .. first_rows[i + 1] - 1
    num_committed: Ints  # [B]
    num_slots: Ints  # [B] in use once these rows are written
    token_ids: Ints  # [N]
    positions: Ints  # [axes, N] of RoPE (tree nodes: committed + depth); three under M-RoPE
    prefixes: Ints  # [N]
    ancestors: Ints  # [N, W] bit j % 64 of word j // 64: it sees slot committed + j

    @property
    def lengths(self) -> Ints:
        """Rows of each sequence. [B]"""
        return self.first_rows[1:] - self.first_rows[:-1]

    @property
    def sequence_of(self) -> Ints:
        """Number of each row's sequence. [N]"""
        return np.repeat(np.arange(len(self.blocks)), self.lengths)

    def part(self, begin: int, end: int) -> Rows:
        """Those of sequences `begin` to `end` - 1."""
        first, last = int(self.first_rows[begin]), int(self.first_rows[end])
        return Rows(
            blocks=self.blocks[begin:end],
            first_rows=self.first_rows[begin : end + 1] - first,
            num_committed=self.num_committed[begin:end],
            num_slots=self.num_slots[begin:end],
            token_ids=self.token_ids[first:last],
            positions=self.positions[:, first:last],
            prefixes=self.prefixes[first:last],
            ancestors=self.ancestors[first:last],
        )

    def tables(self, block_tokens: int) -> tuple[Ints, Ints]:
        """(block tables one after another, as far as they are in use; where each begins [B])"""
        used = -(-self.num_slots // block_tokens)
        ends = np.cumsum(used)
        each = [np.array(b[:n], np.int64) for b, n in zip(self.blocks, used.tolist(), strict=True)]
        return np.concatenate(each), ends - used

    def slots(self, tables: tuple[Ints, Ints], block_tokens: int) -> Ints:
        """Of the cache, where the rows write, by their `tables`. [N]"""
        blocks, starts = tables
        # A sequence's last row writes to its last slot, and so on backwards.
        place = np.arange(len(self.token_ids))
        place += np.repeat(self.num_slots - self.first_rows[1:], self.lengths)
        block, offset = np.divmod(place, block_tokens)
        block += np.repeat(starts, self.lengths)
        slots: Ints = blocks[block] * block_tokens + offset
        return slots


@dataclass(frozen=True, slots=True)
class PackedStep:
    """One forward pass, ready for the device."""

    token_ids: torch.Tensor  # [N]
    positions: torch.Tensor  # [N], or [3, N] under M-RoPE
    attention: AttentionStep
    first_rows: Ints  # [num_sequences + 1] rows of sequence i: first_rows[i] .. first_rows[i + 1]


def causal_rows(
    blocks: Sequence[Blocks],
    num_committed: Ints,
    lengths: Ints,
    token_ids: Ints,
    positions: Ints | None = None,
) -> Rows:
    """Stretches of B sequences, `lengths` [B] tokens each, behind what they have committed [B].
    `positions` [axes, N]; None: they are counted."""
    ends = np.cumsum(lengths)
    counted = np.arange(len(token_ids)) + np.repeat(num_committed - ends + lengths, lengths)
    return Rows(
        blocks=blocks,
        first_rows=np.concatenate(([0], ends)),
        num_committed=num_committed,
        num_slots=num_committed + lengths,
        token_ids=token_ids,
        positions=counted[None] if positions is None else positions,
        prefixes=counted + 1,
        ancestors=np.zeros((len(token_ids), 1), np.int64),
    )


def joined(parts: Sequence[Rows]) -> Rows:
    """The parts' sequences one after another."""
    if len(parts) == 1:
        return parts[0]
    words = max(part.ancestors.shape[1] for part in parts)
    ends = np.cumsum([len(part.token_ids) for part in parts])
    firsts = [
        part.first_rows[1:] + end - len(part.token_ids)
        for part, end in zip(parts, ends, strict=True)
    ]
    return Rows(
        blocks=[blocks for part in parts for blocks in part.blocks],
        first_rows=np.concatenate(([0], *firsts)),
        num_committed=np.concatenate([part.num_committed for part in parts]),
        num_slots=np.concatenate([part.num_slots for part in parts]),
        token_ids=np.concatenate([part.token_ids for part in parts]),
        positions=np.concatenate([part.positions for part in parts], axis=1),
        prefixes=np.concatenate([part.prefixes for part in parts]),
        ancestors=np.concatenate([widened(part.ancestors, words) for part in parts]),
    )


def words_for(num_bits: int) -> int:
    """Words that hold so many bits; one at least."""
    return max(1, -(-num_bits // WORD_BITS))


def widened(bits: Ints, words: int) -> Ints:
    """[N, words] the same bits in no fewer words."""
    missing = words - bits.shape[1]
    return bits if missing == 0 else np.pad(bits, ((0, 0), (0, missing)))


def single_bits(places: Ints, words: int) -> Ints:
    """[N, words] bit `places` [N] of each row, and no other."""
    bits = np.zeros((len(places), words), np.int64)
    rows = np.arange(len(places))
    bits[rows, places // WORD_BITS] = np.left_shift(1, places % WORD_BITS)
    return bits


def picked(values: torch.Tensor, rows: Ints) -> torch.Tensor:
    """Rows [n] of values [N, ...], without waiting for their device."""
    return values.index_select(0, to_device(rows, values.device))
