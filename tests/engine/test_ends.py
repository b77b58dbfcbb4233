"""Answers end exactly where they should, and whatever ends frees its blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from draft_doubles import KnowingDrafter, chain
from engine_rig import Case, answers, make_engine, random_feature_drafter, run_all

from smart_serve.engine.sequence import State
from smart_serve.errors import ClientError, OverloadedError
from smart_serve.messages import GenerateRequest, SamplingParams


def knowing(folder: Path, cases: list[Case]) -> object:
    """An engine whose drafter knows the answers, so that ends fall inside accepted paths."""
    drafter = KnowingDrafter(chain(4))
    drafter.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(cases)}
    return make_engine(folder, drafter)


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 6, 7])
def test_max_tokens_cuts_exactly(
    small_llava: Path, llava_cases: list[Case], max_tokens: int
) -> None:
    cases = [case for case in llava_cases if len(case.answer) > 7][:4]
    sequences = run_all(knowing(small_llava, cases), cases, SamplingParams(max_tokens=max_tokens))
    assert answers(sequences) == [case.answer[:max_tokens] for case in cases]
    assert {sequence.finish_reason for sequence in sequences} == {"length"}
    assert all(sequence.stats().completion_tokens == max_tokens for sequence in sequences)


@pytest.mark.parametrize("place", range(8))
def test_a_stop_token_ends_the_answer_and_is_kept(
    small_llava: Path, llava_cases: list[Case], place: int
) -> None:
    case = max(llava_cases, key=lambda case: len(set(case.answer)))
    stop = case.answer[place]
    first = case.answer.index(stop)
    sampling = SamplingParams(max_tokens=20, stop_token_ids=(stop,))
    sequence = run_all(knowing(small_llava, [case]), [case], sampling)[0]
    assert answers([sequence])[0] == case.answer[: first + 1]
    assert sequence.finish_reason == "stop"


def test_eos_ends_and_ignore_eos_goes_on(small_llava: Path, llava_cases: list[Case]) -> None:
    ended = [case for case in llava_cases if len(case.answer) < 20]
    assert ended
    sequences = run_all(knowing(small_llava, ended), ended)
    assert answers(sequences) == [case.answer for case in ended]
    assert {sequence.finish_reason for sequence in sequences} == {"stop"}
    engine = make_engine(small_llava, random_feature_drafter(small_llava))
    longer = answers(run_all(engine, ended, SamplingParams(max_tokens=20, ignore_eos=True)))
    assert all(len(text) == 20 for text in longer)
    assert all(
        text[: len(case.answer)] == case.answer for text, case in zip(longer, ended, strict=True)
    )


@pytest.mark.parametrize("after", range(6))
def test_abort_in_any_state_frees_the_blocks(
    small_llava: Path, llava_cases: list[Case], after: int
) -> None:
    drafter = random_feature_drafter(small_llava)
    engine = make_engine(small_llava, drafter, kv_tokens=96, prefill_chunk_tokens=10, max_running=3)
    sequences = [engine.add(case.request(), case.features) for case in llava_cases[:6]]
    for _ in range(after):
        engine.step()
    victims = [*sequences[::2], sequences[0]]
    for sequence in victims:
        engine.abort(sequence)
    assert all(sequence.finish_reason is not None for sequence in victims)
    while engine.scheduler.has_work:
        engine.step()
    engine.scheduler.pool.check_idle()
    assert drafter.free_blocks == drafter.total_blocks
    kept = [(s, c) for s, c in zip(sequences[1::2], llava_cases[1:6:2], strict=True)]
    assert all(answers([sequence])[0] == case.answer for sequence, case in kept)
    assert all(sequence.state is State.FINISHED for sequence in sequences)


def test_a_pre_empted_sequence_that_is_dropped_leaves_nothing_with_the_drafter(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    drafter = random_feature_drafter(small_llava)
    engine = make_engine(small_llava, drafter, kv_tokens=64)
    sequences = [engine.add(case.request(), case.features) for case in llava_cases[:3]]
    was_running: set[int] = set()
    for _ in range(100):
        engine.step()
        pre_empted = [s for s in engine.scheduler.waiting if s.id in was_running]
        if pre_empted:
            break
        was_running |= {s.id for s in engine.scheduler.running if s.num_generated > 1}
    assert pre_empted
    for sequence in sequences:
        engine.abort(sequence)
    engine.scheduler.pool.check_idle()
    assert drafter.free_blocks == drafter.total_blocks


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"token_ids": ()}, "empty"),
        ({"token_ids": (5, 61)}, "vocabulary"),
        ({"token_ids": (-1,)}, "vocabulary"),
        ({"sampling": SamplingParams(max_tokens=5_000)}, "context"),
        ({"image_spans": ()}, "pictures"),
        ({"token_ids": (5, 5)}, "fit"),
    ],
)
def test_what_could_never_run_is_refused_at_once(
    small_llava: Path, llava_cases: list[Case], change: dict[str, object], word: str
) -> None:
    case = llava_cases[1]
    engine = make_engine(small_llava, None, "off")
    fields = {"request_id": "x", "token_ids": case.token_ids, "image_spans": case.spans} | change
    with pytest.raises(ClientError, match=word):
        engine.add(GenerateRequest(**fields), case.features)
    with pytest.raises(ClientError, match="fit"):
        engine.add(case.request(), [np.zeros((3, 32), np.float32)])
    assert not engine.scheduler.has_work


def test_a_full_queue_is_refused(small_llava: Path, llava_cases: list[Case]) -> None:
    engine = make_engine(small_llava, None, "off", max_waiting=2)
    for _ in range(2):
        engine.add(llava_cases[0].request())
    with pytest.raises(OverloadedError):
        engine.add(llava_cases[0].request())
