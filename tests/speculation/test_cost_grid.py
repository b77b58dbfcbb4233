"""What is measured fits the device, and comes out as it was measured."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_serve.speculation.cost_grid import CONTEXTS, CostGrid, Room


def linear_ms(batch: int, rows: int, context: int) -> float:
    """A target that is bound by arithmetic and reads each key once."""
    return 5.0 + 0.01 * batch * rows + 1e-4 * batch * context


def test_large_contexts_are_measured_where_they_fit() -> None:
    grid = CostGrid.within(Room(2048, 16, 4096), 64)
    assert dict(grid.cells) == {1: CONTEXTS, 4: CONTEXTS, 16: CONTEXTS[:2], 64: CONTEXTS[:2]}


@settings(deadline=None, max_examples=60)
@given(
    num_blocks=st.integers(1, 300),
    block_tokens=st.integers(1, 32),
    max_context=st.integers(2, 2000),
    max_batch=st.integers(1, 600),
)
def test_nothing_is_measured_that_the_device_cannot_hold(
    num_blocks: int, block_tokens: int, max_context: int, max_batch: int
) -> None:
    room = Room(num_blocks, block_tokens, max_context)
    asked: list[tuple[int, int, int]] = []

    def step_ms(batch: int, rows: int, context: int) -> float:
        asked.append((batch, rows, context))
        return linear_ms(batch, rows, context)

    table = CostGrid.within(room, max_batch).measure(step_ms, lambda done, total: None)
    least = 1 + table.contexts[0]
    for batch, rows, context in asked:
        assert batch == 1 or batch <= max_batch
        assert room.holds(batch, context + rows) or (rows == 1 and not room.holds(1, least))
        assert context <= max_context


def test_the_table_tells_what_was_measured_and_what_lies_between_and_beyond() -> None:
    told: list[tuple[int, int]] = []
    table = CostGrid.within(Room(4096, 16, 4096), 64).measure(
        linear_ms, lambda done, total: told.append((done, total))
    )
    assert told[-1] == (len(told), len(told))
    for batch, rows, context in [(1, 1, 64), (16, 8, 1024), (40, 2, 100), (4, 16, 3000)]:
        expected = linear_ms(batch, rows, context)
        assert table.step_ms(batch * rows, batch, context) == pytest.approx(expected)


def test_noise_that_makes_a_longer_context_cheaper_is_lifted() -> None:
    table = CostGrid.within(Room(4096, 16, 4096), 1).measure(
        lambda batch, rows, context: 10.0 - context / 1024, lambda done, total: None
    )
    assert table.step_ms(1, 1, 100_000) >= table.step_ms(1, 1, 64)
