"""What requests have in common is computed once, and no token changes for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from draft_doubles import KnowingDrafter, chain
from engine_rig import (
    IMAGE_ROWS,
    Case,
    answers,
    make_engine,
    random_feature_drafter,
    run_all,
)
from small_models import IMAGE_TOKEN

from smart_serve.drafters.protocol import DraftBatch, Proposal
from smart_serve.engine.block_keys import BlockKeys
from smart_serve.engine.engine import Engine
from smart_serve.engine.load import StepRates
from smart_serve.engine.sequence import Sequence
from smart_serve.messages import ImageSpan, SamplingParams

BLOCK = 4
LONG = SamplingParams(max_tokens=24, ignore_eos=True)


def with_picture(before: list[int], picture: Case, after: list[int]) -> Case:
    """A prompt around the picture of another case."""
    ids = (*before, *[IMAGE_TOKEN] * IMAGE_ROWS, *after)
    span = ImageSpan(len(before), IMAGE_ROWS, picture.spans[0].content_hash)
    return Case(ids, (span,), picture.features)


@pytest.fixture(scope="module")
def common(llava_cases: list[Case]) -> list[Case]:
    """Two pictures, each asked about in the same words, and then in others."""
    rng = np.random.default_rng(4)
    system = rng.integers(3, IMAGE_TOKEN, 6).tolist()
    cases = []
    for number in range(12):
        picture = llava_cases[1 + 2 * (number % 2)]
        question = [7, 8, 9, *rng.integers(3, IMAGE_TOKEN, number % 5).tolist()]
        cases.append(with_picture(system, picture, question))
    return cases


def plain(folder: Path, **options: object) -> Engine:
    return make_engine(folder, None, "off", **options)


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("kv_tokens", [2048, 88])
@pytest.mark.parametrize("every", [0, 4])
def test_tokens_are_the_same_with_and_without_reuse(
    small_llava: Path, common: list[Case], kv_tokens: int, every: int, drafts: bool
) -> None:
    sequences: dict[bool, list[Sequence]] = {}
    for reuse in (False, True):
        drafter = random_feature_drafter(small_llava) if drafts and reuse else None
        options = {"kv_tokens": kv_tokens, "prefill_chunk_tokens": 24, "prefix_reuse": reuse}
        engine = make_engine(small_llava, drafter, **options)
        sequences[reuse] = run_all(engine, common, LONG, every=every)
        pre_empted = sum(s.tally.pre_emptions for s in sequences[reuse])
        assert (pre_empted > 0) == (kv_tokens == 88)
    assert answers(sequences[True]) == answers(sequences[False])
    assert len(set(answers(sequences[True]))) > 6
    assert (sum(s.tally.drafted for s in sequences[True]) > 0) == drafts
    assert sum(s.stats().cached_tokens for s in sequences[False]) == 0
    assert sum(s.stats().cached_tokens for s in sequences[True]) >= 8 * len(common) // 2


class Listener(KnowingDrafter):
    """Keeps the vectors that it is sent, by sequence."""

    def __init__(self) -> None:
        super().__init__(chain(2))
        self.vectors: dict[int, torch.Tensor] = {}

    def propose(self, batch: DraftBatch) -> Proposal:
        for item in batch.inputs:
            assert item.vectors is not None
            before = self.vectors.get(item.sequence_id, item.vectors[:0])[: item.start]
            self.vectors[item.sequence_id] = torch.cat((before, item.vectors))
        return super().propose(batch)


def listen(engine: Engine, case: Case, answer: tuple[int, ...]) -> torch.Tensor:
    """What a drafter that joins now is sent while the case runs."""
    listener = Listener()
    engine.set_drafter(listener)
    listener.texts = {key: [*case.token_ids, *answer] for key in range(99)}
    sequence = run_all(engine, [case], LONG)[0]
    assert answers([sequence]) == [answer]
    return listener.vectors[sequence.id]


def test_a_drafter_is_sent_the_same_whether_or_not_a_prefix_was_reused(
    small_llava: Path, llava_cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = with_picture([5] * 9, llava_cases[1], [6] * 9)
    answer = answers(run_all(plain(small_llava, prefix_reuse=False), [case], LONG))[0]
    right = listen(make_engine(small_llava, prefix_reuse=False), case, answer)
    engine = make_engine(small_llava)
    listen(engine, case, answer)
    run_all(engine, [case], LONG)
    torch.testing.assert_close(listen(engine, case, answer), right)
    # What was cached when no features were kept must not be found by those who need them.
    for flushes in (True, False):
        engine = make_engine(small_llava)
        run_all(engine, [case], LONG)
        if not flushes:
            monkeypatch.setattr(engine.scheduler.pool, "flush", lambda: None)
        assert torch.allclose(listen(engine, case, answer), right, atol=1e-5) == flushes


def test_the_same_words_under_another_picture_share_only_what_is_before_it(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    one, other = (with_picture([5] * 4, llava_cases[i], [6] * 8) for i in (1, 3))
    assert one.token_ids == other.token_ids
    right = answers(run_all(plain(small_llava, prefix_reuse=False), [one, other], LONG))
    assert right[0] != right[1]
    engine = plain(small_llava)
    first, second = (run_all(engine, [case], LONG)[0] for case in (one, other))
    assert answers([first, second]) == right
    assert second.tally.cached_tokens == 4
    # The control: keys that do not know of pictures give one picture's answer for the other.
    blinded = replace(other, spans=one.spans)
    engine = plain(small_llava)
    run_all(engine, [one], LONG)
    assert answers(run_all(engine, [blinded], LONG)) != right[1:]


def test_a_cached_prefix_may_end_inside_a_picture(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    one, other = (with_picture([5, 6], llava_cases[1], [end] * 3) for end in (7, 8))
    right = answers(run_all(plain(small_llava, prefix_reuse=False), [one, other]))
    engine = plain(small_llava)
    run_all(engine, [one])
    sequence = run_all(engine, [other])[0]
    assert sequence.tally.cached_tokens == BLOCK == 2 + IMAGE_ROWS // 2
    assert answers([sequence]) == right[1:]


def test_a_second_turn_reuses_the_first_one_s_answer(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    engine, first = plain(small_llava), llava_cases[1]
    answer = answers(run_all(engine, [first], LONG))[0]
    history = (*first.token_ids, *answer)
    turn = Case((*history, 11, 12, 13), first.spans, first.features)
    second = run_all(engine, [turn], LONG)[0]
    # The answer's last token was never run.
    assert second.stats().cached_tokens == (len(history) - 1) // BLOCK * BLOCK
    assert answers([second]) == answers(
        run_all(plain(small_llava, prefix_reuse=False), [turn], LONG)
    )


def test_the_same_prompt_again_computes_one_block_at_most(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    engine = plain(small_llava)
    for case in llava_cases[:6]:
        run_all(engine, [case])
        again = run_all(engine, [case])[0]
        assert again.stats().cached_tokens == (len(case.token_ids) - 1) // BLOCK * BLOCK
        assert answers([again]) == [case.answer]
    load = StepRates().load(engine)
    assert 0 < load.cached_blocks == load.total_blocks - load.free_blocks


def test_what_a_failed_sequence_computed_is_not_found_again(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    case = with_picture([5] * 9, llava_cases[1], [6] * 9)
    right = answers(run_all(plain(small_llava, prefix_reuse=False), [case] * 2, LONG))
    engine = plain(small_llava, prefill_chunk_tokens=8)
    bad = engine.add(case.request(LONG), [np.full_like(case.features[0], np.nan)])
    engine.step()
    assert engine.scheduler.pool._key_of, "its first, finite blocks are published"
    engine.step()
    assert bad.finish_reason == "error"
    assert not engine.scheduler.pool._key_of
    again = run_all(engine, [case], LONG)[0]
    assert again.tally.cached_tokens == 0
    assert answers([again]) == right[:1]


def test_a_shared_block_is_not_cleared_under_another_reader(
    small_llava: Path, llava_cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = with_picture([5] * 9, llava_cases[1], [6] * 9)
    right = answers(run_all(plain(small_llava, prefix_reuse=False), [case], LONG))
    engine = plain(small_llava)
    failing, other = (engine.add(case.request(LONG), case.features) for _ in range(2))
    while other.num_generated < 3:
        engine.step()
    shared = set(failing.blocks) & set(other.blocks)
    assert len(shared) >= 5
    real = engine.model.logits

    def first_row_is_bad(hidden: torch.Tensor) -> torch.Tensor:
        logits = real(hidden).clone()
        logits[0] = float("nan")
        return logits

    monkeypatch.setattr(engine.model, "logits", first_row_is_bad)
    engine.step()
    monkeypatch.undo()
    assert (failing.finish_reason, other.finish_reason) == ("error", None)
    assert not shared & engine.scheduler.pool._key_of.keys()
    while engine.scheduler.has_work:
        engine.step()
    engine.scheduler.pool.check_idle()
    assert answers([other]) == right


def test_keys_tell_apart_whatever_the_cache_depends_on(llava_cases: list[Case]) -> None:
    case = with_picture([5] * 3, llava_cases[1], [6] * 9)
    span = case.spans[0]
    others = {
        "another token": replace(case, token_ids=(4, *case.token_ids[1:])),
        "another picture": replace(case, spans=(replace_hash(span, "another"),)),
        "another place": replace(case, spans=(ImageSpan(2, span.length, span.content_hash),)),
        "another size": replace(case, spans=(ImageSpan(3, 6, span.content_hash),)),
        "another grid": replace(case, spans=(ImageSpan(3, 4, span.content_hash, (4, 1)),)),
        "no picture": replace(case, spans=(), features=()),
    }
    keys = BlockKeys(BLOCK)

    def keys_of(case: Case) -> list[bytes]:
        return keys.of(Sequence(0, case.request(), (), 0), 3)[:3]

    assert keys_of(case) == keys_of(replace(case))
    for other in others.values():
        assert not set(keys_of(case)) & set(keys_of(other))
    elsewhere = BlockKeys(BLOCK).of(Sequence(0, case.request(), (), 0), 3)
    assert not set(keys_of(case)) & set(elsewhere), "another process has other keys"


def replace_hash(span: ImageSpan, content_hash: str) -> ImageSpan:
    return ImageSpan(span.start, span.length, content_hash)
