"""Greedy answers are transformers' own, whatever the policy, the batch or the drafter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from draft_doubles import KnowingDrafter, chain, thicket
from engine_rig import (
    ANSWER_TOKENS,
    Case,
    answers,
    make_engine,
    random_feature_drafter,
    run_all,
)
from small_models import VOCAB

POLICIES = ("off", "eagle2", "smart")


def expected(cases: list[Case]) -> list[tuple[int, ...]]:
    return [case.answer for case in cases]


def test_the_references_differ_and_some_end_by_themselves(llava_cases: list[Case]) -> None:
    texts = expected(llava_cases)
    assert len(set(texts)) > 8
    assert np.mean([len(set(text)) for text in texts]) > 4


@pytest.mark.parametrize("policy", POLICIES)
def test_llava_alone_equals_generate(
    small_llava: Path, llava_cases: list[Case], policy: str
) -> None:
    engine = make_engine(small_llava, random_feature_drafter(small_llava), policy)
    got = [answers(run_all(engine, [case]))[0] for case in llava_cases[:6]]
    assert got == expected(llava_cases[:6])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("every", [0, 3])
def test_llava_in_a_mixed_batch_equals_generate(
    small_llava: Path, llava_cases: list[Case], policy: str, every: int
) -> None:
    drafter = random_feature_drafter(small_llava)
    engine = make_engine(small_llava, drafter, policy)
    sequences = run_all(engine, llava_cases, every=every)
    assert answers(sequences) == expected(llava_cases)
    drafted = sum(sequence.tally.drafted for sequence in sequences)
    assert (drafted > 0) == (policy != "off")
    assert drafter.free_blocks == drafter.total_blocks


@pytest.mark.parametrize("policy", POLICIES)
def test_llama_equals_generate(small_llama: Path, llama_cases: list[Case], policy: str) -> None:
    engine = make_engine(small_llama, random_feature_drafter(small_llama), policy)
    assert answers(run_all(engine, llama_cases)) == expected(llama_cases)


@pytest.mark.parametrize("policy", ["off", "eagle2"])
def test_small_chunks_of_prefill_change_nothing(
    small_llava: Path, llava_cases: list[Case], policy: str
) -> None:
    engine = make_engine(
        small_llava, random_feature_drafter(small_llava), policy, prefill_chunk_tokens=7
    )
    assert answers(run_all(engine, llava_cases)) == expected(llava_cases)


@pytest.mark.parametrize("cut", [1, 2])
def test_a_picture_at_the_end_of_the_prompt_survives_any_chunk(
    small_llava: Path, llava_cases: list[Case], cut: int
) -> None:
    """The last chunk may be one row, and that row may be a picture's."""
    case = llava_cases[1]
    span = case.spans[0]
    ends_with_picture = Case(case.token_ids[: span.start + span.length], case.spans, case.features)
    whole = make_engine(small_llava, None, "off")
    chunked = make_engine(
        small_llava, None, "off", prefill_chunk_tokens=len(ends_with_picture.token_ids) - cut
    )
    assert answers(run_all(chunked, [ends_with_picture])) == answers(
        run_all(whole, [ends_with_picture])
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_pre_emption_changes_nothing(
    small_llava: Path, llava_cases: list[Case], policy: str
) -> None:
    drafter = random_feature_drafter(small_llava)
    engine = make_engine(small_llava, drafter, policy, kv_tokens=72, prefill_chunk_tokens=16)
    taken: list[int] = []
    real = engine.scheduler._preempt_newest

    def counted() -> object:
        victim = real()
        taken.append(victim.id)
        return victim

    engine.scheduler._preempt_newest = counted
    assert answers(run_all(engine, llava_cases[:8])) == expected(llava_cases[:8])
    assert len(taken) >= 3
    assert drafter.free_blocks == drafter.total_blocks


@pytest.mark.parametrize("depth", [1, 4])
def test_a_perfect_drafter_gives_depth_plus_one_tokens_a_step(
    small_llava: Path, llava_cases: list[Case], depth: int
) -> None:
    drafter = KnowingDrafter(chain(depth))
    engine = make_engine(small_llava, drafter)
    cases = [case for case in llava_cases if len(case.answer) == ANSWER_TOKENS][:5]
    drafter.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(cases)}
    sequences = run_all(engine, cases)
    assert answers(sequences) == expected(cases)
    for sequence in sequences:
        # One token comes from prefill; the others in steps of depth + 1.
        steps = 1 + -(-(ANSWER_TOKENS - 1) // (depth + 1))
        assert sequence.tally.target_steps == steps
    assert drafter.held == {}


def test_thickets_of_right_and_wrong_tokens_change_nothing(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    drafter = KnowingDrafter(thicket(np.random.default_rng(0), VOCAB))
    engine = make_engine(small_llava, drafter)
    drafter.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(llava_cases)}
    sequences = run_all(engine, llava_cases, every=2)
    assert answers(sequences) == expected(llava_cases)
    assert 0 < sum(s.tally.accepted for s in sequences) < sum(s.tally.drafted for s in sequences)
