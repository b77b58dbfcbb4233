"""Who runs in the next step. Token counts and blocks only: no tensors, no model."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from smart_serve.engine.sequence import Sequence, State
from smart_serve.errors import OverloadedError
from smart_serve.paging.blocks import BlockPool


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens start .. start + length - 1 of a sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    length: int
    is_last: bool
    """Its last row gives the next token."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """One step: every decoding sequence, and as much prefill as the budget allows."""

    decodes: tuple[Sequence, ...]
    prefills: tuple[PrefillChunk, ...]

    @property
    def is_empty(self) -> bool:
        return not self.decodes and not self.prefills


class Scheduler:
    """Continuous batching: first come first served, chunked prefill, pre-emption by recompute.

    Owns the waiting queue, the running list and the block accounts.
    """

    def __init__(
        self, pool: BlockPool, *, max_running: int, max_waiting: int, prefill_tokens: int
    ) -> None:
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._prefill_tokens = prefill_tokens

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. Raises `OverloadedError` when the queue is full."""
        if len(self.waiting) >= self._max_waiting:
            raise OverloadedError(f"{len(self.waiting)} requests are waiting already; try later")
        self.waiting.append(sequence)

    def schedule(self) -> StepWork:
        """Reserve blocks and choose the step's rows; may pre-empt the newest sequences."""
        self._admit()
        decodes = self._reserve_decodes()
        budget, prefills = self._prefill_tokens, []
        for sequence in self.running:
            if budget == 0:
                break
            if sequence.is_decoding:
                continue
            length = min(budget, sequence.num_uncomputed)
            is_last = length == sequence.num_uncomputed
            prefills.append(PrefillChunk(sequence, sequence.num_computed, length, is_last))
            budget -= length
        return StepWork(decodes, tuple(prefills))

    def reserve_nodes(self, sequence: Sequence, num_nodes: int) -> int:
        """Blocks for a draft tree beyond the pending token; returns how many nodes have room."""
        if self.pool.grow(sequence.blocks, len(sequence.tokens) + num_nodes):
            return num_nodes
        spare = len(sequence.blocks) * self.pool.block_tokens - len(sequence.tokens)
        return min(num_nodes, spare)

    def trim(self, sequence: Sequence) -> None:
        """Give back the blocks that only rejected draft nodes used."""
        self.pool.release(sequence.blocks, keep_tokens=len(sequence.tokens))

    def finish(self, sequence: Sequence) -> None:
        """Remove a sequence in any state and free what it holds; again is harmless."""
        if sequence.state is State.WAITING and sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.state is State.RUNNING:
            self.running.remove(sequence)
        sequence.state = State.FINISHED
        self.pool.release(sequence.blocks)

    def _admit(self) -> None:
        """Whole prompts only: what is admitted can be prefilled without taking from others."""
        while self.waiting and len(self.running) < self._max_running:
            sequence = self.waiting[0]
            if not self.pool.grow(sequence.blocks, len(sequence.tokens)):
                return
            self.waiting.popleft()
            sequence.state = State.RUNNING
            if sequence.started_s is None:
                sequence.started_s = time.monotonic()
            self.running.append(sequence)

    def _reserve_decodes(self) -> tuple[Sequence, ...]:
        """Room for the pending token of every decoding sequence, oldest first."""
        decodes: list[Sequence] = []
        for sequence in list(self.running):
            if sequence.state is not State.RUNNING or not sequence.is_decoding:
                continue
            while not self.pool.grow(sequence.blocks, len(sequence.tokens)):
                if self._preempt_newest() is sequence:
                    break
            if sequence.state is State.RUNNING:
                decodes.append(sequence)
        return tuple(decodes)

    def _preempt_newest(self) -> Sequence:
        victim = self.running.pop()
        self.pool.release(victim.blocks)
        victim.restart()
        self.waiting.appendleft(victim)
        return victim
