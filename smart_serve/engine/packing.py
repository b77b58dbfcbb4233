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
from smart_serve.paging.rows import Ints, Rows, causal_rows, single_bits, words_for
from smart_serve.speculation.tree import Forest


def tree_rows(sequences: Seq[Sequence], forest: Forest) -> Rows:
    """Each sequence's pending token and its tree of the forest."""
    sizes = forest.sizes
    trees = np.arange(forest.num_trees)
    first_rows = forest.offsets + np.arange(forest.num_trees + 1)
    roots, lengths = first_rows[:-1], sizes + 1
    nodes = np.arange(forest.num_nodes) + np.repeat(trees, sizes) + 1
    committed = np.array([sequence.num_computed for sequence in sequences], np.int64)
    token_ids = np.empty(int(first_rows[-1]), np.int64)
    token_ids[roots] = [sequence.tokens[-1] for sequence in sequences]
    token_ids[nodes] = forest.token_ids
    indices = np.repeat(committed, lengths)
    # Whoever is in a tree sees its root.
    prefixes = indices + 1
    indices[nodes] += forest.depths
    return Rows(
        blocks=[sequence.blocks for sequence in sequences],
        first_rows=first_rows,
        num_committed=committed,
        num_slots=committed + lengths,
        token_ids=token_ids,
        positions=_positions(sequences, indices, first_rows),
        prefixes=prefixes,
        ancestors=_node_bits(forest, nodes, np.repeat(roots, sizes), len(token_ids)),
    )


def chunk_rows(chunk: PrefillChunk) -> Rows:
    """A stretch of a prompt, causal within itself."""
    sequence, end = chunk.sequence, chunk.start + chunk.length
    ids = np.array(sequence.tokens[chunk.start : end], np.int64)
    indices = np.arange(chunk.start, end)
    positions = _positions((sequence,), indices, np.array((0, chunk.length)))
    start, length = np.array([chunk.start]), np.array([chunk.length])
    return causal_rows((sequence.blocks,), start, length, ids, positions)


def step_rows(work: StepWork, forest: Forest) -> list[Rows]:
    """Rows of all sequences, in groups of similar length: the trees, and each chunk by itself."""
    trees = [tree_rows(work.decodes, forest)] if work.decodes else []
    return [*trees, *(chunk_rows(chunk) for chunk in work.prefills)]


def _positions(sequences: Seq[Sequence], indices: Ints, first_rows: Ints) -> Ints:
    """RoPE positions [axes, N] of the tokens at `indices` [N]."""
    ropes = [sequence.rope for sequence in sequences if sequence.rope is not None]
    if not ropes:
        return indices[None]
    stretches = np.split(indices, first_rows[1:-1])
    return np.concatenate(
        [rope.at(own) for rope, own in zip(ropes, stretches, strict=True)], axis=1
    )


def _node_bits(forest: Forest, nodes: Ints, roots: Ints, num_rows: int) -> Ints:
    """`Rows.ancestors` of the rows of all trees; `nodes` [M] are the forest's among them, and
    `roots` [M] those of their trees."""
    places = nodes - roots
    words = words_for(int(places.max(initial=0)) + 1)
    bits = np.zeros((num_rows, words), np.int64)
    own, parents = single_bits(places, words), roots + forest.parents
    # A layer at a time: the bits of parents are then complete.
    for depth in range(1, int(forest.depths.max(initial=0)) + 1):
        layer = np.flatnonzero(forest.depths == depth)
        bits[nodes[layer]] = bits[parents[layer]] | own[layer]
    return bits


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
