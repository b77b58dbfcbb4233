"""M-RoPE positions are those of transformers, for any pictures in any places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_qwen2_vl_config
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from smart_serve.messages import ImageSpan
from smart_serve.models.rope import RopePositions

MODEL = Qwen2VLModel(small_qwen2_vl_config())
GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))
PROMPTS = st.lists(st.tuples(st.integers(0, 5), GRIDS), max_size=4)
"""Text tokens and then a picture, some times over."""


def lay_out(pieces: list[tuple[int, tuple[int, int]]]) -> tuple[list[ImageSpan], int]:
    spans, length = [], 0
    for index, (text, grid) in enumerate(pieces):
        # Neighbouring pictures are one run to transformers: real prompts part them by their marks.
        length += max(text, 1)
        spans.append(ImageSpan(length, grid[0] * grid[1], f"hash{index}", grid))
        length += spans[-1].length
    return spans, length


def reference(spans: list[ImageSpan], length: int, answer: int) -> np.ndarray:
    """[3, length + answer] by transformers' own rule."""
    types = torch.zeros(1, length, dtype=torch.int32)
    for span in spans:
        types[0, span.start : span.start + span.length] = 1
    grids = torch.tensor([[1, 2 * span.grid[0], 2 * span.grid[1]] for span in spans])
    positions, delta = MODEL.get_rope_index(
        torch.zeros(1, length, dtype=torch.int64), types, image_grid_thw=grids if spans else None
    )
    behind = torch.arange(length, length + answer) + delta[0]
    return torch.cat((positions[:, 0], behind.expand(3, -1)), dim=1).numpy()


@settings(max_examples=150, deadline=None)
@given(pieces=PROMPTS, tail=st.integers(0, 5), cut=st.integers(0, 60))
def test_positions_equal_transformers(
    pieces: list[tuple[int, tuple[int, int]]], tail: int, cut: int
) -> None:
    spans, length = lay_out(pieces)
    length += max(tail, 0 if spans else 1)
    expected = reference(spans, length, 9)
    rope = RopePositions(spans)
    everything = np.arange(length + 9)
    assert rope.at(everything).tolist() == expected.tolist()
    # Any chunk by itself, and the places of a tree's nodes, which repeat.
    if cut < len(everything):
        assert rope.at(everything[cut:]).tolist() == expected[:, cut:].tolist()
    nodes = length + np.asarray([0, 1, 1, 2, 2, 3])
    assert rope.at(nodes).tolist() == expected[:, nodes].tolist()


@pytest.mark.parametrize("grid", [(2, 3), (3, 2)])
def test_rows_and_columns_are_told_apart(grid: tuple[int, int]) -> None:
    """The control: with the axes of one picture exchanged positions are others."""
    span = ImageSpan(2, 6, "hash", grid)
    wrong = RopePositions([ImageSpan(2, 6, "hash", grid[::-1])])
    assert wrong.at(np.arange(9)).tolist() != reference([span], 9, 0).tolist()
