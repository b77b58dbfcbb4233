"""All short histories of a small scheduler: blocks conserved, order kept, everything finishes.

The model forward is replaced by its effect on a sequence: computed tokens, and one new token.
"""

from __future__ import annotations

import itertools

import pytest

from smart_serve.engine.scheduler import Scheduler, StepWork
from smart_serve.engine.sequence import Sequence, State
from smart_serve.errors import OverloadedError
from smart_serve.messages import GenerateRequest, SamplingParams
from smart_serve.paging.blocks import BlockPool

BLOCK, BLOCKS, BUDGET, RUNNING = 2, 6, 3, 3
PROMPTS = {"a": 1, "b": 4, "c": 7}
"""Events that add a request, and its prompt's length."""
ANSWER = 3


class World:
    """A scheduler and everything ever given to it."""

    def __init__(self, max_waiting: int = 99) -> None:
        pool = BlockPool(BLOCKS + 1, BLOCK)
        self.scheduler = Scheduler(
            pool, max_running=RUNNING, max_waiting=max_waiting, prefill_tokens=BUDGET
        )
        self.sequences: list[Sequence] = []
        self.pre_emptions = 0
        self.first_tokens: list[int] = []

    def add(self, prompt: int) -> None:
        request = GenerateRequest(
            request_id="r",
            token_ids=tuple(range(prompt)),
            sampling=SamplingParams(max_tokens=ANSWER),
        )
        sequence = Sequence(len(self.sequences), request, (), 0)
        self.scheduler.add(sequence)
        self.sequences.append(sequence)

    def step(self, num_nodes: int = 0) -> StepWork:
        running = {s.id for s in self.scheduler.running}
        work = self.scheduler.schedule()
        self.pre_emptions += len(running & {s.id for s in self.scheduler.waiting})
        self.check(work)
        for sequence in work.decodes:
            self._decode(sequence, num_nodes)
        for chunk in work.prefills:
            chunk.sequence.num_computed += chunk.length
            if chunk.is_last:
                if chunk.sequence.num_generated == 0:
                    self.first_tokens.append(chunk.sequence.id)
                self._emit(chunk.sequence)
        self.check_blocks()
        return work

    def _decode(self, sequence: Sequence, num_nodes: int) -> None:
        room = self.scheduler.reserve_nodes(sequence, num_nodes)
        assert 0 <= room <= num_nodes
        assert len(sequence.blocks) * BLOCK >= len(sequence.tokens) + room
        sequence.num_computed += 1
        self._emit(sequence)

    def _emit(self, sequence: Sequence) -> None:
        sequence.tokens.append(100 + sequence.num_generated)
        if sequence.num_generated == ANSWER:
            self.scheduler.finish(sequence)
        else:
            self.scheduler.trim(sequence)

    def check(self, work: StepWork) -> None:
        assert sum(chunk.length for chunk in work.prefills) <= BUDGET
        assert len(self.scheduler.running) <= RUNNING
        ids = [s.id for s in work.decodes] + [chunk.sequence.id for chunk in work.prefills]
        assert len(set(ids)) == len(ids)
        for sequence in work.decodes:
            assert sequence.num_uncomputed == 1
            assert len(sequence.blocks) * BLOCK >= len(sequence.tokens)
        for chunk in work.prefills:
            assert chunk.start == chunk.sequence.num_computed
            assert chunk.length >= 1
            assert len(chunk.sequence.blocks) * BLOCK >= chunk.start + chunk.length
        order = [s.id for s in (*self.scheduler.running, *self.scheduler.waiting)]
        assert order == sorted(order), "first come, first served"
        assert not work.is_empty or not self.scheduler.has_work, "there is work, and none is done"

    def check_blocks(self) -> None:
        held = [block for sequence in self.sequences for block in sequence.blocks]
        assert len(set(held)) == len(held), "a block has two owners"
        assert len(held) + self.scheduler.pool.free == BLOCKS
        waiting = [s for s in self.sequences if s.state is State.WAITING]
        assert all(not s.blocks and s.num_computed == 0 for s in waiting)

    def run_out(self) -> None:
        for _ in range(200):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work, "something never finishes"
        self.scheduler.pool.check_idle()


EVENTS = (*PROMPTS, "step", "tree step", "abort oldest", "abort newest")


def play(history: tuple[str, ...]) -> World:
    world = World()
    aborted: set[int] = set()
    for event in history:
        if event in PROMPTS:
            world.add(PROMPTS[event])
        elif event.startswith("abort"):
            alive = [s for s in world.sequences if s.state is not State.FINISHED]
            if alive:
                victim = alive[0 if event.endswith("oldest") else -1]
                aborted.add(victim.id)
                world.scheduler.finish(victim)
                world.scheduler.finish(victim)
        else:
            world.step(num_nodes=5 if event.startswith("tree") else 0)
        world.check_blocks()
    world.run_out()
    for sequence in world.sequences:
        if sequence.id not in aborted:
            answer = sequence.tokens[sequence.num_prompt :]
            assert answer == [100, 101, 102], "pre-emption lost or repeated a token"
    return world


@pytest.mark.parametrize("first", sorted(PROMPTS))
def test_every_short_history_keeps_the_accounts(first: str) -> None:
    pre_emptions = 0
    for rest in itertools.product(EVENTS, repeat=4):
        pre_emptions += play((first, *rest)).pre_emptions
    assert pre_emptions > 0, "the histories must reach pre-emption"


def test_long_histories_of_one_kind_finish() -> None:
    for prompt, event in itertools.product(PROMPTS, ("step", "tree step")):
        world = play((prompt, event) * 12)
        assert all(s.state is State.FINISHED for s in world.sequences)
        assert world.first_tokens == sorted(world.first_tokens)


def test_a_full_queue_is_refused_and_a_pre_empted_one_still_gets_back() -> None:
    world = World(max_waiting=1)
    world.add(4)
    with pytest.raises(OverloadedError):
        world.add(4)
    world.step()
    world.add(4)
    world.step()
    world.add(7)
    world.run_out()
