"""Seeded answers depend on (seed, prompt) alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from draft_doubles import KnowingDrafter, forest_of, thicket
from engine_rig import Case, answers, make_engine, random_feature_drafter, run_all
from small_models import VOCAB

from smart_serve.engine import sampler
from smart_serve.engine.sequence import Sequence
from smart_serve.messages import GenerateRequest, SamplingParams


def seeded(index: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=16, temperature=0.8, top_p=0.9, top_k=20, seed=1_000 + index, ignore_eos=True
    )


@pytest.fixture(scope="module")
def alone(small_llava: Path, llava_cases: list[Case]) -> list[tuple[int, ...]]:
    """Each request by itself, decoded plainly."""
    engine = make_engine(small_llava, None, "off")
    return [answers(run_all(engine, [case], seeded(i)))[0] for i, case in enumerate(llava_cases)]


@pytest.mark.parametrize("policy", ["off", "eagle2", "smart"])
@pytest.mark.parametrize("every", [0, 2])
def test_seeded_answers_are_those_of_plain_decoding_alone(
    small_llava: Path,
    llava_cases: list[Case],
    alone: list[tuple[int, ...]],
    policy: str,
    every: int,
) -> None:
    engine = make_engine(small_llava, random_feature_drafter(small_llava), policy)
    params = [seeded(i) for i in range(len(llava_cases))]
    assert answers(run_all(engine, llava_cases, params, every=every)) == alone


def test_accepted_drafts_and_pre_emption_keep_seeded_answers(
    small_llava: Path, llava_cases: list[Case], alone: list[tuple[int, ...]]
) -> None:
    drafter = KnowingDrafter(thicket(np.random.default_rng(1), VOCAB))
    engine = make_engine(small_llava, drafter, kv_tokens=120, prefill_chunk_tokens=9)
    drafter.texts = {
        i: [*case.token_ids, *answer]
        for i, (case, answer) in enumerate(zip(llava_cases, alone, strict=True))
    }
    params = [seeded(i) for i in range(len(llava_cases))]
    sequences = run_all(engine, llava_cases, params)
    assert answers(sequences) == alone
    assert sum(sequence.tally.accepted for sequence in sequences) > 30


def test_another_seed_gives_another_answer(
    small_llava: Path, llava_cases: list[Case], alone: list[tuple[int, ...]]
) -> None:
    engine = make_engine(small_llava, None, "off")
    other = [answers(run_all(engine, [case], seeded(77)))[0] for case in llava_cases[:4]]
    assert all(a != b for a, b in zip(other, alone, strict=False))


def test_a_uniform_of_the_wrong_position_is_caught(
    small_llava: Path,
    llava_cases: list[Case],
    alone: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: keyed by the row instead of the position, speculation changes answers."""
    real = sampler.keyed_uniforms
    monkeypatch.setattr(
        sampler,
        "keyed_uniforms",
        lambda seeds, at, device: real(seeds, np.arange(len(at)) + at.min(), device),
    )
    engine = make_engine(small_llava, random_feature_drafter(small_llava))
    params = [seeded(i) for i in range(len(llava_cases))]
    assert answers(run_all(engine, llava_cases, params)) != alone


def test_requests_without_a_seed_differ(small_llava: Path, llava_cases: list[Case]) -> None:
    engine = make_engine(small_llava, None, "off")
    params = SamplingParams(max_tokens=16, temperature=1.0, ignore_eos=True)
    assert len(set(answers(run_all(engine, [llava_cases[0]] * 4, params)))) == 4


def one_row(params: SamplingParams) -> Sequence:
    request = GenerateRequest(request_id="r", token_ids=(1,), sampling=params)
    return Sequence(0, request, (), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_rows_that_are_not_finite_are_called_so(
    dtype: torch.dtype, temperature: float
) -> None:
    """A vocabulary's worth of ordinary logits sums beyond float16's range, and is finite."""
    logits = torch.full((4, 32_000), -6.0, dtype=dtype)
    logits[:, 7] = 3.0
    logits[1, 5], logits[2, 5] = float("nan"), float("inf")
    sequence = one_row(SamplingParams(temperature=temperature, top_k=1))
    forest = forest_of([[(3, 0), (3, 1), (3, 2)]])
    drawn = sampler.draw(logits, [sequence], forest)
    assert drawn.is_finite.tolist() == [True, False, False, True]
    assert drawn.token_ids[[0, 3]].tolist() == [7, 7]
