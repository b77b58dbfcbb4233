"""A step that does not fit into the device's memory is done in smaller parts; no token changes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from draft_doubles import KnowingDrafter, LyingDrafter, thicket
from engine_rig import Case, answers, make_engine, random_feature_drafter, run_all
from small_models import VOCAB

from smart_serve.drafters.protocol import Proposal
from smart_serve.engine import row_limit
from smart_serve.engine.engine import Engine
from smart_serve.engine.scheduler import StepWork
from smart_serve.errors import OverloadedError
from smart_serve.models.attention_step import AttentionStep
from smart_serve.models.target import Hidden


class SmallDevice:
    """The engine's model on a device that holds `max_rows` rows and `max_positions` tokens."""

    def __init__(self, engine: Engine, max_rows: int, max_positions: int = 10**9) -> None:
        self.max_rows, self.max_positions = max_rows, max_positions
        self.rows: list[int] = []
        """Of every forward that was tried."""
        self._forward = engine.model.forward
        engine.model.forward = self.forward

    def forward(
        self, embeds: torch.Tensor, positions: torch.Tensor, attention: AttentionStep
    ) -> Hidden:
        self.rows.append(len(embeds))
        hidden = self._forward(embeds, positions, attention)  # What it writes is left behind.
        if len(embeds) > self.max_rows or int(positions.max()) >= self.max_positions:
            raise torch.OutOfMemoryError("the device is full")
        return hidden

    @property
    def num_failed(self) -> int:
        return sum(rows > self.max_rows for rows in self.rows)


def thicket_engine(folder: Path, cases: list[Case], **options: object) -> Engine:
    drafter = KnowingDrafter(thicket(np.random.default_rng(3), VOCAB))
    drafter.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(cases)}
    return make_engine(folder, drafter, **options)


@pytest.mark.parametrize("max_rows", [40, 12, 5, 1])
@pytest.mark.parametrize("kv_tokens", [2048, 88])
def test_tokens_do_not_change_however_little_fits(
    small_llava: Path,
    llava_cases: list[Case],
    max_rows: int,
    kv_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_limit, "RETRY_STEPS", 6)
    engine = thicket_engine(small_llava, llava_cases, kv_tokens=kv_tokens)
    device = SmallDevice(engine, max_rows)
    sequences = run_all(engine, llava_cases, every=2)
    assert answers(sequences) == [case.answer for case in llava_cases]
    assert device.num_failed > 0
    drafted = sum(sequence.tally.drafted for sequence in sequences)
    assert (drafted > 0) == (max_rows > 1), "drafting goes on where there is room for it"


@pytest.mark.parametrize("spare", [0, 12])
def test_draft_trees_go_first_and_come_back(
    small_llava: Path, llava_cases: list[Case], spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_limit, "RETRY_STEPS", 8)
    cases = [case for case in llava_cases if len(case.answer) == 20][:4]
    engine = thicket_engine(small_llava, cases)
    sequences = [engine.add(case.request(), case.features) for case in cases]
    while not all(sequence.num_generated for sequence in sequences):
        engine.step()
    device = SmallDevice(engine, max_rows=len(cases) + spare)
    for _ in range(7):
        engine.step()
    assert device.num_failed > 0
    assert min(device.rows) >= len(cases), "all pending tokens still run together"
    held = [rows for rows in device.rows if rows <= device.max_rows]
    assert (max(held) > len(cases)) == (spare > 0), "trees as large as there is room for"
    device.max_rows = 1000
    while engine.scheduler.has_work:
        engine.step()
    assert max(device.rows[-9:]) > len(cases) + 3, "in the end they are whole again"
    assert answers(sequences) == [case.answer for case in cases]


def test_there_is_one_warning_and_full_steps_return(
    small_llava: Path,
    llava_cases: list[Case],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_limit, "RETRY_STEPS", 8)
    engine = make_engine(small_llava, None, "off")
    device = SmallDevice(engine, max_rows=2)
    sequences = [engine.add(case.request(), case.features) for case in llava_cases[:6]]
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            engine.step()
    assert len(caplog.records) == 1
    num_failed, num_tried, device.max_rows = device.num_failed, len(device.rows), 1000
    assert num_failed >= 2, "from the whole prompts down to two rows"
    while engine.scheduler.has_work:
        engine.step()
    assert device.rows[num_tried] > 2
    assert answers(sequences) == [case.answer for case in llava_cases[:6]]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("reuse", [False, True])
def test_only_the_sequence_that_does_not_fit_alone_ends(
    small_llava: Path, llava_cases: list[Case], reuse: bool
) -> None:
    cases = llava_cases[:6]
    longest = max(cases, key=lambda case: len(case.token_ids) + len(case.answer))
    limit = len(longest.token_ids) + len(longest.answer) - 3
    others = [c for c in cases if len(c.token_ids) + len(c.answer) <= limit]
    drafter = random_feature_drafter(small_llava)
    engine = make_engine(small_llava, drafter, prefix_reuse=reuse)
    SmallDevice(engine, max_rows=1000, max_positions=limit)
    sequences = run_all(engine, [longest, *others, longest])
    for failed in (sequences[0], sequences[-1]):
        assert failed.finish_reason == "error"
        assert failed.error == "the device's memory does not suffice"
        assert 0 < failed.num_generated < len(longest.answer)
        assert answers([failed])[0] == longest.answer[: failed.num_generated]
    assert answers(sequences[1:-1]) == [case.answer for case in others]
    assert drafter.free_blocks == drafter.total_blocks


def test_a_prompt_that_does_not_fit_ends_in_the_middle_of_its_prefill(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    long = Case(tuple(range(3, 50)), (), ())
    engine = make_engine(small_llava, None, "off", prefill_chunk_tokens=32)
    SmallDevice(engine, max_rows=1000, max_positions=40)
    sequences = run_all(engine, [llava_cases[0], long, llava_cases[1]])
    assert [s.finish_reason == "error" for s in sequences] == [False, True, False]
    assert sequences[1].num_computed == 40, "it went as far as there was room"
    assert answers(sequences[::2]) == [case.answer for case in llava_cases[:2]]


def test_a_request_whose_pictures_find_no_memory_is_refused(
    small_llava: Path, llava_cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("the device is full")

    engine = make_engine(small_llava, None, "off")
    case = llava_cases[1]
    with monkeypatch.context() as during:
        during.setattr(torch, "tensor", full)
        with pytest.raises(OverloadedError, match="pictures"):
            engine.add(case.request(), case.features)
    assert not engine.scheduler.has_work
    assert answers(run_all(engine, [case])) == [case.answer]


def test_a_drafter_without_memory_is_left_alone_for_a_while(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    def full(proposal: Proposal) -> Proposal:
        raise torch.OutOfMemoryError("the device is full")

    honest = KnowingDrafter(thicket(np.random.default_rng(3), VOCAB))
    honest.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(llava_cases)}
    drafter = LyingDrafter(honest, full)
    engine = make_engine(small_llava, drafter)
    assert answers(run_all(engine, llava_cases)) == [case.answer for case in llava_cases]
    assert drafter.asked == 1


def test_half_a_prompt_that_is_taken_for_a_whole_one_is_caught(
    small_llava: Path, llava_cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the tests above."""
    honest = StepWork.halves

    def hasty(work: StepWork) -> Iterator[StepWork]:
        for half in honest(work):
            if len(work.sequences) == 1:
                half = StepWork((), (replace(half.prefills[0], is_last=True),))
            yield half

    def run() -> list[tuple[int, ...]]:
        engine = make_engine(small_llava, None, "off")
        SmallDevice(engine, max_rows=3)
        return answers(run_all(engine, llava_cases))

    assert run() == [case.answer for case in llava_cases]
    monkeypatch.setattr(StepWork, "halves", hasty)
    with pytest.raises(IndexError):
        run()
