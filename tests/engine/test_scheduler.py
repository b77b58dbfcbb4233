"""All short histories of a small scheduler: blocks conserved and never misread, order kept,
streams never stalled, everything finishes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from scheduler_world import ANSWER, PROMPTS, World

from smart_serve.engine import block_keys
from smart_serve.engine.block_keys import BlockKeys
from smart_serve.engine.scheduler import Scheduler
from smart_serve.engine.sequence import Sequence, State
from smart_serve.errors import OverloadedError

EVENTS = (*PROMPTS, "step", "tree step", "abort oldest", "abort newest", "pre-empt")


def play(history: tuple[str, ...]) -> World:
    world = World()
    aborted: set[int] = set()
    for event in history:
        alive = [s for s in world.sequences if s.state is not State.FINISHED]
        if event in PROMPTS:
            world.add(event)
        elif event == "pre-empt":
            world.pre_empt()
        elif event.endswith("step"):
            world.step(num_nodes=5 if event.startswith("tree") else 0)
        elif alive:
            victim = alive[0 if event.endswith("oldest") else -1]
            aborted.add(victim.id)
            world.abort(victim)
        world.check_blocks()
    world.run_out()
    for sequence in world.sequences:
        if sequence.id not in aborted:
            answer = tuple(sequence.tokens[sequence.num_prompt :])
            assert answer == ANSWER, "pre-emption lost or repeated a token"
    return world


def play_all(histories: Iterable[tuple[str, ...]]) -> None:
    num_pre_empted = num_cached = 0
    for history in histories:
        world = play(history)
        num_pre_empted += world.num_pre_empted
        num_cached += sum(s.tally.cached_tokens for s in world.sequences)
    assert num_pre_empted > 0, "the histories must reach pre-emption for want of blocks"
    assert num_cached > 0, "the histories must reach reuse"


def all_histories(length: int) -> Iterable[tuple[str, ...]]:
    return (
        (first, *rest) for first in PROMPTS for rest in itertools.product(EVENTS, repeat=length - 1)
    )


def test_every_short_history_keeps_the_accounts() -> None:
    play_all(all_histories(4))


@pytest.mark.slow
def test_every_history_of_five_events_keeps_the_accounts() -> None:
    play_all(all_histories(5))


def test_random_long_histories_keep_the_accounts() -> None:
    rng = np.random.default_rng(1)
    play_all(tuple(rng.choice(EVENTS, size=25)) for _ in range(400))


def test_long_histories_of_one_kind_finish() -> None:
    for prompt, event in itertools.product(PROMPTS, ("step", "tree step")):
        world = play((prompt, event) * 12)
        assert all(s.state is State.FINISHED for s in world.sequences)


def ignore_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_keys, "_pictures", lambda sequence, start, length: b"")


def publish_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Scheduler.commit

    def hasty(self: Scheduler, sequence: Sequence) -> None:
        sequence.num_computed += 1
        honest(self, sequence)
        sequence.num_computed -= 1

    monkeypatch.setattr(Scheduler, "commit", hasty)


def forget_what_comes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = BlockKeys.of

    def unchained(self: BlockKeys, sequence: Sequence, num_blocks: int) -> list[bytes]:
        keys = sequence.block_keys
        while len(keys) < num_blocks:
            sequence.block_keys = [bytes(32)] * len(keys)
            keys.append(honest(self, sequence, len(keys) + 1)[-1])
        sequence.block_keys = keys
        return keys

    monkeypatch.setattr(BlockKeys, "of", unchained)


@pytest.mark.parametrize("plant", [ignore_pictures, publish_too_much, forget_what_comes_before])
def test_a_planted_bug_is_caught(plant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)

    def play_until_it_shows() -> None:
        for history in all_histories(4):
            play(history)

    with pytest.raises(AssertionError):
        play_until_it_shows()


def test_requests_that_arrive_together_compute_what_is_alike_once() -> None:
    world = World()
    together = [world.add("turn 1") for _ in range(3)]
    world.run_out()
    shared = 2  # of the prompt's two blocks the last keeps a token to compute
    assert [s.tally.cached_tokens for s in together] == [0, shared, shared]
    num_generated = 3 * (len(ANSWER) - 1)
    assert world.num_computed == 4 + 2 * (4 - shared) + num_generated


def test_a_second_turn_starts_from_the_first_one_s_blocks() -> None:
    world = World()
    world.add("turn 1")
    world.run_out()
    second, other = world.add("turn 2"), world.add("other picture")
    world.run_out()
    assert second.tally.cached_tokens == 6
    assert other.tally.cached_tokens == 0


def test_a_pre_empted_sequence_finds_its_blocks_again() -> None:
    world = World()
    sequence = world.add("turn 2")
    while sequence.num_generated < 2:
        world.step()
    before = world.num_computed
    world.pre_empt()
    world.run_out()
    assert world.num_computed == before + 1, "nothing but the pending token is computed"
    assert sequence.tally.cached_tokens == 0, "its own blocks are no reused prompt"


def test_a_short_prompt_passes_a_long_one_that_still_goes_on() -> None:
    world = World()
    long, short = world.add("turn 2"), world.add("short")
    work = world.step()
    assert [(chunk.sequence, chunk.length) for chunk in work.prefills] == [(long, 2), (short, 1)]
    assert short.num_generated == 1


def test_a_full_queue_is_refused_and_a_pre_empted_one_still_gets_back() -> None:
    world = World(max_waiting=1)
    world.add("turn 1")
    with pytest.raises(OverloadedError):
        world.add("turn 1")
    world.step()
    world.add("turn 1")
    world.step()
    world.pre_empt()
    world.run_out()
