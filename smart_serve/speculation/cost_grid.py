"""Where costs are measured, whatever the clock: a device's, or a simulated one's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from smart_serve.speculation.cost import CostTable, Curve

BATCHES = (1, 4, 16, 64, 256, 512)
CONTEXTS = (64, 384, 2048)
"""Attention's cost is linear in the context: two points make a line, which goes on beyond the last
one. The default KV cache holds 64 sequences of 384 tokens."""
ROWS_PER_SEQUENCE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Up to `MAX_ROWS` even for one sequence: a curve that ends on the flat part, where the weights are
loaded, would go on flat, and hundreds of draft nodes would look free."""
MAX_ROWS = 512
"""Packed rows of the largest measured step; beyond it the curve goes on with its last slope."""
ROWS_OF_LARGE_BATCH = 4
"""Rows per sequence that are measured even where that makes more than `MAX_ROWS`."""
PAST_KNEE = 4.0
"""A step that takes so many times the smallest one is bound by arithmetic: the curve goes on
straight, and need not be measured further."""
LAYER_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
"""Rows of a drafting pass; the largest are prompts that a drafter catches up with."""
LAYER_SEQUENCES = 64
"""Over which they are spread: rows of one sequence share what it has in the cache, and a pass with
more rows has several of each."""

PASSES = 2
"""Over the grid; of each step the quicker time counts. A neighbour's burst only ever adds, and
outlasts one step's measuring but seldom the whole pass."""

StepClock = Callable[[int, int, int], float]
"""(batch, rows per sequence, context) -> milliseconds of such a target forward."""


@dataclass(frozen=True, slots=True)
class Room:
    """Sequences that a device holds: KV blocks (none of them set aside), and a model's context."""

    num_blocks: int
    block_tokens: int
    max_context: int

    def holds(self, batch: int, tokens: int) -> bool:
        """Whether `batch` sequences of so many tokens fit."""
        return batch * -(-tokens // self.block_tokens) <= self.num_blocks

    @property
    def contexts(self) -> tuple[int, ...]:
        """Those that one sequence can have."""
        most = min(self.num_blocks * self.block_tokens, self.max_context)
        return tuple(c for c in CONTEXTS if c + ROWS_OF_LARGE_BATCH <= most) or (max(1, most // 2),)


@dataclass(frozen=True, slots=True)
class CostGrid:
    """Each batch at those contexts whose sequences fit."""

    cells: tuple[tuple[int, tuple[int, ...]], ...]
    """(batch, contexts), both rising; every batch has the first context."""
    room: Room
    stairs: tuple[int, ...] = ()
    """Numbers of rows to which steps are padded (see `CostTable`)."""

    @staticmethod
    def within(room: Room, max_batch: int, stairs: tuple[int, ...] = ()) -> CostGrid:
        """For batches up to `max_batch`."""

        def fits(batch: int, context: int) -> bool:
            return room.holds(batch, context + ROWS_OF_LARGE_BATCH)

        contexts = room.contexts
        batches = [b for b in BATCHES if b <= max_batch and fits(b, contexts[0])] or [1]
        cells = ((b, tuple(c for c in contexts if fits(b, c)) or contexts[:1]) for b in batches)
        return CostGrid(tuple(cells), room, stairs)

    def measure(self, step_ms: StepClock, progress: Callable[[int, int], None]) -> CostTable:
        """The table; `progress` is told (done, total) after each curve."""
        cells = [(batch, context) for batch, contexts in self.cells for context in contexts]
        times: dict[tuple[int, int], dict[int, float]] = {}
        for done in range(PASSES * len(cells)):
            cell = cells[done % len(cells)]
            known = times.get(cell)
            if known is None:
                times[cell] = self._first_times(*cell, step_ms)
            else:
                batch, context = cell
                times[cell] = {
                    rows: min(ms, step_ms(batch, rows, context)) for rows, ms in known.items()
                }
            progress(done + 1, PASSES * len(cells))
        return self._table(times)

    def _table(self, times: dict[tuple[int, int], dict[int, float]]) -> CostTable:
        """From milliseconds by (batch, context) and rows per sequence."""
        curves = []
        for batch, contexts in self.cells:
            cells = (times[batch, context] for context in contexts)
            row = [
                Curve.measured([batch * rows for rows in cell], list(cell.values()))
                for cell in cells
            ]
            # More context never costs less; noise would go on beyond the last one.
            for i in reversed(range(len(row) - 1)):
                row[i] = Curve.measured(row[i].x, row[i].below(row[i + 1]).y)
            for i in range(1, len(row)):
                row[i] = row[i].above(row[i - 1])
            curves.append(tuple(row))
        batches = tuple(batch for batch, _ in self.cells)
        return CostTable(batches, self.cells[0][1], tuple(curves), self.stairs)

    def _first_times(self, batch: int, context: int, step_ms: StepClock) -> dict[int, float]:
        """Milliseconds by rows per sequence, up to the knee."""
        times: dict[int, float] = {}
        for rows in self._rows(batch, context):
            times[rows] = step_ms(batch, rows, context)
            if times[rows] > PAST_KNEE * times[1]:
                break
        return times

    def _rows(self, batch: int, context: int) -> Iterator[int]:
        most = max(MAX_ROWS, ROWS_OF_LARGE_BATCH * batch)
        yield 1
        on_stairs = {stair // batch for stair in self.stairs if stair % batch == 0}
        for rows in sorted({*ROWS_PER_SEQUENCE, *on_stairs} - {1}):
            if batch * rows <= most and self.room.holds(batch, context + rows):
                yield rows
