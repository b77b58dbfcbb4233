"""Who runs in the next step. Token counts and blocks only: no tensors, no model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from smart_serve.engine.block_keys import BlockKeys
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

    @property
    def num_rows(self) -> int:
        """Without draft nodes."""
        return len(self.decodes) + sum(chunk.length for chunk in self.prefills)

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        return (*self.decodes, *(chunk.sequence for chunk in self.prefills))

    def without(self, left_out: tuple[Sequence, ...]) -> StepWork:
        """The same, but for these decoding sequences."""
        if not left_out:
            return self
        others = frozenset(left_out)
        return replace(self, decodes=tuple(s for s in self.decodes if s not in others))

    def halves(self) -> Iterator[StepWork]:
        """Two smaller steps that do the same one after the other; of more than one row. The second
        is asked for after the first was done, and left out if nothing is left for it."""
        if self.decodes and self.prefills:
            yield StepWork(self.decodes, ())
            yield StepWork((), self.prefills)
        elif len(self.sequences) > 1:
            middle = len(self.sequences) // 2
            yield StepWork(self.decodes[:middle], self.prefills[:middle])
            yield StepWork(self.decodes[middle:], self.prefills[middle:])
        else:
            chunk = self.prefills[0]
            first = chunk.length // 2
            yield StepWork((), (replace(chunk, length=first, is_last=False),))
            if chunk.sequence.state is State.RUNNING:
                rest = replace(chunk, start=chunk.start + first, length=chunk.length - first)
                yield StepWork((), (rest,))


class Scheduler:
    """Continuous batching: admission in order of arrival, chunked prefill beside the decoding
    sequences, pre-emption of the newest by recompute, reuse of common prefixes.

    Owns the waiting queue, the running list and the block accounts.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_running: int,
        max_waiting: int,
        prefill_tokens: int,
        prefix_reuse: bool,
    ) -> None:
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._prefix_reuse = prefix_reuse
        self._keys = BlockKeys(pool.block_tokens)
        self.max_running = max_running
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
        for sequence in self.running:
            if not sequence.is_decoding:
                sequence.tally.add_cached(self._reuse(sequence))
        self._admit()
        decodes = self._reserve_decodes()
        return StepWork(decodes, tuple(self._share_budget()))

    def reserve_nodes(self, sequence: Sequence, num_nodes: int) -> int:
        """Blocks for a draft tree beyond the pending token; returns how many nodes have room."""
        if self.pool.grow(sequence.blocks, len(sequence.tokens) + num_nodes):
            return num_nodes
        spare = len(sequence.blocks) * self.pool.block_tokens - len(sequence.tokens)
        return min(num_nodes, spare)

    def commit(self, sequence: Sequence) -> None:
        """After a step of it, once accepted rows are in place: publish the blocks that are full
        now, and give back those that only rejected draft nodes used."""
        self.pool.release(sequence.blocks, keep_tokens=len(sequence.tokens))
        if not self._prefix_reuse or sequence.draft.features_from > 0:
            return  # Who finds a block must find the features with it.
        # An answer's last step may have computed rows beyond its end.
        num_full = min(sequence.num_computed, len(sequence.tokens)) // self.pool.block_tokens
        if num_full == sequence.num_published:
            return
        keys = self._keys.of(sequence, num_full)
        for index in range(sequence.num_published, num_full):
            self.pool.publish(sequence.blocks, index, keys[index])
        sequence.num_published = num_full

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
        while self.waiting and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            num_reused = self._reuse(sequence)
            if not self.pool.grow(sequence.blocks, len(sequence.tokens)):
                self.pool.release(sequence.blocks)
                sequence.rewind()
                return
            self.waiting.popleft()
            sequence.tally.add_cached(num_reused)
            sequence.state = State.RUNNING
            if sequence.started_s is None:
                sequence.started_s = time.monotonic()
            self.running.append(sequence)

    def _reuse(self, sequence: Sequence) -> int:
        """Take the blocks that follow from what others have computed; returns their tokens.

        One token is always left: its row gives the next one.
        """
        size, first = self.pool.block_tokens, sequence.num_published
        num_full = (len(sequence.tokens) - 1) // size if self._prefix_reuse else 0
        before = sequence.num_computed
        for key in self._keys.of(sequence, num_full)[first:num_full]:
            if not self.pool.adopt(sequence.blocks, sequence.num_published, key):
                break
            sequence.num_published += 1
            sequence.num_computed = sequence.num_published * size
        return sequence.num_computed - before

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

    def _share_budget(self) -> list[PrefillChunk]:
        """Half of the step's prefill is the oldest prompt's, so that none waits for ever; the rest
        goes to those with the least left, so that short prompts pass a long one.

        A prompt whose next block is computed for another in this step waits, and takes it then.
        """
        prompts = [sequence for sequence in self.running if not sequence.is_decoding]
        shares = [(sequence, -(-self._prefill_tokens // 2)) for sequence in prompts[:1]]
        nearest = sorted(prompts, key=lambda sequence: sequence.num_uncomputed)
        shares += [(sequence, self._prefill_tokens) for sequence in nearest]
        left, lengths, begun = self._prefill_tokens, dict.fromkeys(prompts, 0), set[bytes]()
        for sequence, most in shares:
            num_taken = lengths[sequence]
            if num_taken == 0 and begun.intersection(self._next_keys(sequence, 1)):
                continue
            lengths[sequence] += min(most, left, sequence.num_uncomputed - num_taken)
            left -= lengths[sequence] - num_taken
            begun.update(self._next_keys(sequence, lengths[sequence]))
        return [
            PrefillChunk(s, s.num_computed, length, length == s.num_uncomputed)
            for s, length in lengths.items()
            if length > 0
        ]

    def _next_keys(self, sequence: Sequence, num_tokens: int) -> list[bytes]:
        """Of the full blocks that its next `num_tokens` fall into, as far as others may use
        them."""
        if not self._prefix_reuse:
            return []
        size = self.pool.block_tokens
        num_full = (len(sequence.tokens) - 1) // size
        end = self.pool.blocks_for(sequence.num_computed + num_tokens)
        last = min(num_full, end)
        return self._keys.of(sequence, last)[sequence.num_published : last]

    def _preempt_newest(self) -> Sequence:
        victim = self.running.pop()
        self.pool.release(victim.blocks)
        victim.restart()
        self.waiting.appendleft(victim)
        return victim
