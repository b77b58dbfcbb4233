"""A scheduler with everything ever given to it, and a model of what its KV blocks hold.

The model forward is replaced by its effect: every cache slot that it writes holds the whole text
that its keys and values depend on, and every slot that it reads is checked to hold just that.
"""

from __future__ import annotations

from smart_serve.engine.scheduler import PrefillChunk, Scheduler, StepWork
from smart_serve.engine.sequence import Sequence, State
from smart_serve.messages import GenerateRequest, ImageSpan, SamplingParams
from smart_serve.paging.blocks import BlockPool

BLOCK, BLOCKS, BUDGET, RUNNING = 2, 6, 3, 3
ANSWER = (100, 101, 102)
PROMPTS = {
    "short": ((0,), None),
    "turn 1": ((0, 1, 2, 3), "x"),
    "turn 2": ((0, 1, 2, 3, *ANSWER), "x"),
    "other picture": ((0, 1, 2, 3), "y"),
}
"""Events that add a request: its prompt, and the picture at its places 1 and 2."""
Text = tuple[object, ...]


class World:
    """`max_waiting` and the scheduler's other limits are small, so that all of them are met."""

    def __init__(self, max_waiting: int = 99) -> None:
        pool = BlockPool(BLOCKS + 1, BLOCK)
        self.scheduler = Scheduler(
            pool,
            max_running=RUNNING,
            max_waiting=max_waiting,
            prefill_tokens=BUDGET,
            prefix_reuse=True,
        )
        self.sequences: list[Sequence] = []
        self.slots: dict[int, Text] = {}
        self.num_computed = 0
        self.num_pre_empted = 0

    def add(self, name: str) -> Sequence:
        token_ids, picture = PROMPTS[name]
        request = GenerateRequest(
            request_id=name,
            token_ids=token_ids,
            image_spans=(ImageSpan(1, 2, picture),) if picture else (),
            sampling=SamplingParams(max_tokens=len(ANSWER)),
        )
        sequence = Sequence(len(self.sequences), request, (), 0)
        self.scheduler.add(sequence)
        self.sequences.append(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        self.scheduler.finish(sequence)

    def pre_empt(self) -> None:
        """As if blocks had run out."""
        if self.scheduler.running:
            self.scheduler._preempt_newest()

    def step(self, num_nodes: int = 0) -> StepWork:
        running = {s.id for s in self.scheduler.running}
        work = self.scheduler.schedule()
        self.num_pre_empted += len(running & {s.id for s in self.scheduler.waiting})
        self.check_work(work)
        for sequence in work.decodes:
            self._decode(sequence, num_nodes)
        for chunk in work.prefills:
            self._prefill(chunk)
        for sequence in work.sequences:
            self.scheduler.commit(sequence)
            if sequence.num_generated == len(ANSWER):
                self.scheduler.finish(sequence)
        self.check_blocks()
        return work

    def run_out(self) -> None:
        for _ in range(300):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work, "something never finishes"
        self.scheduler.pool.check_idle()

    # ---- the forward's effect

    def _decode(self, sequence: Sequence, num_nodes: int) -> None:
        """The pending token's row, and draft nodes after it that are all rejected."""
        room = self.scheduler.reserve_nodes(sequence, num_nodes)
        assert 0 <= room <= num_nodes
        place = sequence.num_computed
        self._compute(sequence, place, place + 1)
        for node in range(room):
            self._write(sequence, place + 1 + node, ("a rejected node",))
        sequence.tokens.append(ANSWER[sequence.num_generated])

    def _prefill(self, chunk: PrefillChunk) -> None:
        sequence = chunk.sequence
        self._compute(sequence, chunk.start, chunk.start + chunk.length)
        if chunk.is_last:
            sequence.tokens.append(ANSWER[sequence.num_generated])

    def _compute(self, sequence: Sequence, start: int, end: int) -> None:
        text = text_of(sequence)
        for place in range(start):
            held = self.slots[self._slot(sequence, place)]
            assert held == text[: place + 1], f"{sequence.request.request_id} reads {held}"
        for place in range(start, end):
            self._write(sequence, place, text[: place + 1])
        sequence.num_computed = end
        self.num_computed += end - start

    def _write(self, sequence: Sequence, place: int, text: Text) -> None:
        slot = self._slot(sequence, place)
        readers = [s for s in self.sequences if slot // BLOCK in s.blocks]
        assert readers == [sequence], "written to under another reader"
        assert slot // BLOCK not in self.scheduler.pool._key_of, "written to what is published"
        self.slots[slot] = text

    def _slot(self, sequence: Sequence, place: int) -> int:
        return sequence.blocks[place // BLOCK] * BLOCK + place % BLOCK

    # ---- what must always hold

    def check_work(self, work: StepWork) -> None:
        assert sum(chunk.length for chunk in work.prefills) <= BUDGET
        assert len(self.scheduler.running) <= RUNNING
        assert len(set(work.sequences)) == len(work.sequences)
        decoding = [s for s in self.scheduler.running if s.is_decoding]
        assert list(work.decodes) == decoding, "a running stream is stalled"
        for sequence in work.decodes:
            assert sequence.num_uncomputed == 1
            assert len(sequence.blocks) * BLOCK >= len(sequence.tokens)
        for chunk in work.prefills:
            assert chunk.start == chunk.sequence.num_computed
            assert chunk.length >= 1
            assert chunk.is_last == (chunk.length == chunk.sequence.num_uncomputed)
            assert len(chunk.sequence.blocks) * BLOCK >= chunk.start + chunk.length
        order = [s.id for s in (*self.scheduler.running, *self.scheduler.waiting)]
        assert order == sorted(order), "admission is in order of arrival"
        assert not work.is_empty or not self.scheduler.has_work, "there is work, and none is done"

    def check_blocks(self) -> None:
        self.scheduler.pool.check([s.blocks for s in self.sequences])
        for sequence in self.sequences:
            if sequence.state is not State.RUNNING:
                assert not sequence.blocks
            if sequence.state is State.WAITING:
                assert sequence.num_computed == 0


def text_of(sequence: Sequence) -> Text:
    """Tokens, and in an image token's place its picture and the place in that."""
    text: list[object] = list(sequence.tokens)
    for span in sequence.request.image_spans:
        for offset in range(span.length):
            text[span.start + offset] = (span.content_hash, offset)
    return tuple(text)
