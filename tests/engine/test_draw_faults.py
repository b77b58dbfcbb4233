"""A request whose tokens cannot be drawn ends alone, and the others' tokens are the right ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from draft_doubles import KnowingDrafter, chain
from engine_rig import ANSWER_TOKENS, Case, answers, make_engine, run_all
from small_models import VOCAB

from smart_serve.engine import penalties, sampler
from smart_serve.engine.controls import Controls
from smart_serve.engine.sequence import Sequence
from smart_serve.messages import SamplingParams

SAMPLED = SamplingParams(
    max_tokens=8,
    temperature=0.8,
    top_p=0.9,
    presence_penalty=0.5,
    logprobs=2,
    seed=7,
    ignore_eos=True,
)


def fails_for_the_marked(real: Callable[..., object], place: int) -> Callable[..., object]:
    """`real`, raising if the argument at `place` is, or holds, the marked request, still with its
    own parameters."""

    def planted(*given: object, **named: object) -> object:
        met = given[place]
        for sequence in met if isinstance(met, list) else [met]:
            assert isinstance(sequence, Sequence)
            request = sequence.request
            if request.request_id == "marked" and request.sampling.temperature > 0:
                raise IndexError("planted")
        return real(*given, **named)

    return planted


NOT_DRAWN = "no token could be drawn with the request's sampling parameters"
PLACES = ["controls", "penalties", "logprobs", "uniforms"]


def plant(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "controls":
        monkeypatch.setattr(Controls, "of", staticmethod(fails_for_the_marked(Controls.of, 0)))
    elif where == "penalties":
        monkeypatch.setattr(penalties, "_one", fails_for_the_marked(penalties._one, 1))
    elif where == "logprobs":
        real = fails_for_the_marked(sampler.row_logprobs, 2)
        monkeypatch.setattr(sampler, "row_logprobs", real)
    else:
        real = fails_for_the_marked(sampler.drawn_positions, 0)
        monkeypatch.setattr(sampler, "drawn_positions", real)


@pytest.mark.parametrize("speculates", [False, True])
@pytest.mark.parametrize("where", PLACES)
def test_a_request_whose_tokens_cannot_be_drawn_ends_alone(
    small_llava: Path,
    llava_cases: list[Case],
    where: str,
    speculates: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = llava_cases[:5]
    wanted = answers(run_all(make_engine(small_llava), cases, SAMPLED))
    honest = KnowingDrafter(chain(2))
    honest.texts = {i: [*case.token_ids, *wanted[i]] for i, case in enumerate(cases)}
    engine = make_engine(small_llava, honest if speculates else None)
    names = ["a", "b", "marked", "c", "d"]
    sequences = [
        engine.add(case.request(SAMPLED, name), case.features)
        for case, name in zip(cases, names, strict=True)
    ]
    for _ in range(2):
        engine.step()
    plant(where, monkeypatch)
    emissions = engine.step()
    ended = [e.chunk for e in emissions if e.sequence.finish_reason == "error"]
    assert [chunk.error for chunk in ended if chunk] == [NOT_DRAWN]
    assert sequences[2].finish_reason == "error"
    while engine.scheduler.has_work:
        engine.step()
    good = [0, 1, 3, 4]
    assert [answers(sequences)[i] for i in good] == [wanted[i] for i in good]
    engine.scheduler.pool.check_idle()


def test_a_first_token_that_cannot_be_drawn_ends_its_request_alone(
    small_llava: Path, llava_cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = llava_cases[:3]
    wanted = answers(run_all(make_engine(small_llava), cases, SAMPLED))
    plant("controls", monkeypatch)
    engine = make_engine(small_llava)
    names = ["a", "marked", "b"]
    sequences = [
        engine.add(case.request(SAMPLED, name), case.features)
        for case, name in zip(cases, names, strict=True)
    ]
    while engine.scheduler.has_work:
        engine.step()
    assert [one.finish_reason for one in sequences] == ["length", "error", "length"]
    assert answers(sequences)[::2] == wanted[::2]
    engine.scheduler.pool.check_idle()


@pytest.mark.parametrize("outside", [-1, VOCAB])
def test_a_token_outside_the_vocabulary_ends_its_request_alone(
    small_llava: Path, llava_cases: list[Case], outside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = msgspec.structs.replace(SAMPLED, logprobs=None)
    wanted = answers(run_all(make_engine(small_llava), llava_cases[:3], plain))
    real = sampler._sample

    def planted(logits: torch.Tensor, *given: Any) -> torch.Tensor:
        tokens = real(logits, *given)
        tokens[1] = outside
        return tokens

    engine = make_engine(small_llava)
    sequences = [engine.add(case.request(plain), case.features) for case in llava_cases[:3]]
    for _ in range(2):
        engine.step()
    monkeypatch.setattr(sampler, "_sample", planted)
    engine.step()
    monkeypatch.undo()
    assert sequences[1].error == NOT_DRAWN
    while engine.scheduler.has_work:
        engine.step()
    assert [one.finish_reason for one in sequences] == ["length", "error", "length"]
    assert answers(sequences)[::2] == wanted[::2]
    engine.scheduler.pool.check_idle()


def test_vanishing_parameters_give_the_likeliest_tokens(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    cold = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=5e-324)
    flat = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=2.0, top_p=5e-324, top_k=1)
    both = run_all(make_engine(small_llava), llava_cases[:4], [cold, flat, cold, flat])
    assert answers(both) == [case.answer for case in llava_cases[:4]]


def test_a_fault_of_nobody_alone_still_ends_the_step(
    small_llava: Path, llava_cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> object:
        raise IndexError("planted")

    engine = make_engine(small_llava)
    engine.add(llava_cases[0].request(SAMPLED), llava_cases[0].features)
    monkeypatch.setattr(sampler, "match", broken)
    with pytest.raises(IndexError, match="planted"):
        engine.step()
