"""From the step's work and draft trees to packed rows: every sequence and tree node in one row.

Row order: for each decoding sequence its root (the pending token) and then its draft nodes; after
them the rows of each prefill chunk.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from numpy.typing import NDArray

from smart_serve.engine.scheduler import PrefillChunk, StepWork
from smart_serve.engine.sequence import Sequence
from smart_serve.paging.rows import Ints, Rows
from smart_serve.speculation.tree import Forest


def tree_rows(sequence: Sequence, forest: Forest, index: int) -> Rows:
    """The pending token and tree `index` of the forest."""
    begin, end = int(forest.offsets[index]), int(forest.offsets[index + 1])
    depths = np.concatenate(([0], forest.depths[begin:end]))
    parents = forest.parents[begin:end]
    committed = sequence.num_computed
    return Rows(
        blocks=sequence.blocks,
        num_committed=committed,
        token_ids=np.concatenate(([sequence.tokens[-1]], forest.token_ids[begin:end])),
        positions=sequence.positions_of(committed + depths),
        visible=ancestors(parents),
    )


def chunk_rows(chunk: PrefillChunk) -> Rows:
    """A stretch of a prompt, causal within itself."""
    sequence, end = chunk.sequence, chunk.start + chunk.length
    return Rows(
        blocks=sequence.blocks,
        num_committed=chunk.start,
        token_ids=np.asarray(sequence.tokens[chunk.start : end], np.int64),
        positions=sequence.positions_of(np.arange(chunk.start, end)),
        visible=np.tri(chunk.length, dtype=np.bool_),
    )


def step_rows(work: StepWork, forest: Forest) -> list[list[Rows]]:
    """Rows of all sequences, in groups of similar length: the trees, and each chunk by itself."""
    trees = [tree_rows(sequence, forest, i) for i, sequence in enumerate(work.decodes)]
    return [trees, *([chunk_rows(chunk)] for chunk in work.prefills)]


def ancestors(parents: Ints) -> NDArray[np.bool_]:
    """[n + 1, n + 1]: row r sees its ancestors and itself; parents [n] are rows, root is row 0."""
    size = len(parents) + 1
    visible = np.zeros((size, size), np.bool_)
    visible[0, 0] = True
    for row, parent in enumerate(parents, start=1):
        visible[row] = visible[parent]
        visible[row, row] = True
    return visible


def row_counts(num_sequences: int, forest: Forest) -> Ints:
    """Logits rows of each sequence: its tree's nodes and root, or the end of its prompt."""
    counts = np.ones(num_sequences, np.int64)
    counts[: forest.num_trees] += forest.sizes
    return counts


def drawn_positions(sequences: Seq[Sequence], forest: Forest) -> Ints:
    """Where the token drawn after each logits row would stand: one row per tree row of the first
    `forest.num_trees` sequences, one for each of the others (whose prompts are finished)."""
    counts = row_counts(len(sequences), forest)
    depths = np.zeros(int(counts.sum()), np.int64)
    trees = np.repeat(np.arange(forest.num_trees), forest.sizes)
    depths[np.arange(forest.num_nodes) + trees + 1] = forest.depths
    ends = np.asarray([len(sequence.tokens) for sequence in sequences], np.int64)
    positions: Ints = np.repeat(ends, counts) + depths
    return positions


def image_rows(work: StepWork, num_tree_rows: int) -> dict[int, torch.Tensor]:
    """Features by the packed row where they begin, for the pictures in this step's chunks, which
    come after `num_tree_rows`."""
    rows: dict[int, torch.Tensor] = {}
    first_row = num_tree_rows
    for chunk in work.prefills:
        sequence, chunk_end = chunk.sequence, chunk.start + chunk.length
        pairs = zip(sequence.request.image_spans, sequence.image_features, strict=True)
        for span, features in pairs:
            begin, end = max(span.start, chunk.start), min(span.start + span.length, chunk_end)
            if begin < end:
                row = first_row + begin - chunk.start
                rows[row] = features[begin - span.start : end - span.start]
        first_row += chunk.length
    return rows
