"""A drafter that comes late, forgets or starts anew gets the history it needs from the cache."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from draft_doubles import KnowingDrafter, LyingDrafter, chain
from engine_rig import Case, answers, make_cases, make_engine, random_feature_drafter

from smart_serve.drafters.protocol import DraftBatch, Drafter, Proposal
from smart_serve.engine.engine import Engine
from smart_serve.engine.sequence import Sequence
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.tree import Forest


@pytest.fixture(scope="module")
def llava_cases(small_llava: Path) -> list[Case]:
    return make_cases(small_llava, 6, pictures=1)


def knowing(cases: list[Case]) -> KnowingDrafter:
    drafter = KnowingDrafter(chain(3))
    drafter.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(cases)}
    return drafter


def start(engine: Engine, cases: list[Case], steps: int) -> list[Sequence]:
    sequences = [engine.add(case.request(), case.features) for case in cases]
    for _ in range(steps):
        engine.step()
    assert any(sequence.finish_reason is None for sequence in sequences)
    return sequences


def finish(engine: Engine, sequences: list[Sequence], cases: list[Case]) -> int:
    """To the end; how many draft tokens were accepted on the way."""
    before = sum(sequence.tally.accepted for sequence in sequences)
    while engine.scheduler.has_work:
        engine.step()
    assert answers(sequences) == [case.answer for case in cases]
    return sum(sequence.tally.accepted for sequence in sequences) - before


class Recorder:
    """An honest drafter whose inputs are kept."""

    def __init__(self, honest: Drafter) -> None:
        self.honest = honest
        self.info = honest.info
        self.seen: list[DraftBatch] = []

    def propose(self, batch: DraftBatch) -> Proposal:
        self.seen.append(
            DraftBatch(
                tuple(
                    item
                    if item.vectors is None
                    else msgspec.structs.replace(item, vectors=item.vectors.clone())
                    for item in batch.inputs
                ),
                batch.growth,
            )
        )
        return self.honest.propose(batch)

    def close(self, sequence_ids: Seq[int]) -> None:
        self.honest.close(sequence_ids)


def test_running_sequences_draft_again_with_a_new_drafter(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    engine = make_engine(small_llava, knowing(llava_cases))
    sequences = start(engine, llava_cases, 3)
    engine.set_drafter(None)
    engine.step()
    engine.set_drafter(knowing(llava_cases))
    assert finish(engine, sequences, llava_cases) > 0


def test_a_drafter_that_forgot_is_sent_everything_again(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    forgetful = Forgetful(knowing(llava_cases))
    engine = make_engine(small_llava, forgetful)
    sequences = start(engine, llava_cases, 3)
    forgetful.honest.held.clear()
    assert finish(engine, sequences, llava_cases) > 0
    assert forgetful.said_unknown


class Forgetful:
    """Says so when it does not hold what was sent before."""

    def __init__(self, honest: KnowingDrafter) -> None:
        self.honest = honest
        self.info = honest.info
        self.said_unknown = False

    def propose(self, batch: DraftBatch) -> Proposal:
        inputs = batch.inputs
        if all(item.start == self.honest.held.get(item.sequence_id, 0) for item in inputs):
            return self.honest.propose(batch)
        self.said_unknown = True
        return nothing_known(Forest.empty(len(inputs)))

    def close(self, sequence_ids: Seq[int]) -> None:
        self.honest.close(sequence_ids)


def nothing_known(forest: Forest) -> Proposal:
    return Proposal(Growth(forest, (), ()), tuple(range(forest.num_trees)))


def test_a_drafter_without_room_is_left_alone_for_a_while(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    full = LyingDrafter(
        knowing(llava_cases), lambda p: nothing_known(Forest.empty(p.growth.forest.num_trees))
    )
    engine = make_engine(small_llava, full)
    sequences = [engine.add(case.request(), case.features) for case in llava_cases]
    assert finish(engine, sequences, llava_cases) == 0
    # The answers are shorter than the pause: each sequence is sent in full once.
    assert full.asked <= len(llava_cases)


def test_features_from_the_cache_are_those_of_one_dense_pass(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    """All at once to a late drafter, or step by step to an early one: the same vectors."""
    early = Recorder(random_feature_drafter(small_llava))
    engine = make_engine(small_llava, early)
    sequences = start(engine, llava_cases, 4)
    late = Recorder(random_feature_drafter(small_llava))
    engine.set_drafter(late)
    engine.step()
    for item in late.seen[0].inputs:
        assert item.start == 0
        parts = [
            one.vectors
            for batch in early.seen
            for one in batch.inputs
            if one.sequence_id == item.sequence_id
        ]
        assert item.vectors is not None
        sent = torch.cat([part for part in parts if part is not None])
        assert len(item.vectors) > len(sent)
        torch.testing.assert_close(item.vectors[: len(sent)], sent)
        tokens = sequences[item.sequence_id].tokens[1 : 1 + len(item.token_ids)]
        assert np.array_equal(item.token_ids, tokens)


def test_a_drafter_is_not_asked_for_what_was_computed_before_features_were_kept(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    engine = make_engine(small_llava)
    old = start(engine, llava_cases, 3)
    late = Recorder(random_feature_drafter(small_llava))
    engine.set_drafter(late)
    for _ in range(3):
        engine.step()
    assert late.seen == []
    new = engine.add(llava_cases[0].request(), llava_cases[0].features)
    finish(engine, [*old, new], [*llava_cases, llava_cases[0]])
    asked = {item.sequence_id for batch in late.seen for item in batch.inputs}
    assert asked == {new.id}
