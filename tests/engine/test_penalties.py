"""Biases and penalties against a computation from scratch, and under speculation."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from draft_doubles import KnowingDrafter, forest_of, thicket
from engine_rig import Case, answers, make_engine, random_feature_drafter, run_all
from small_models import VOCAB
from transformers import AutoModelForCausalLM

from smart_serve.engine import penalties
from smart_serve.engine.sequence import Sequence
from smart_serve.errors import ClientError
from smart_serve.messages import GenerateRequest, SamplingParams

HEAVY = SamplingParams(
    max_tokens=16,
    ignore_eos=True,
    repetition_penalty=1.4,
    presence_penalty=0.6,
    frequency_penalty=0.9,
    logit_bias={5: 2.5, 9: -4.0},
)
SAMPLED = msgspec.structs.replace(HEAVY, temperature=0.9, min_p=0.02, seed=31)


def from_scratch(
    logits: list[float], prompt: list[int], answer: list[int], params: SamplingParams
) -> list[float]:
    """vLLM's order: bias, repetition over prompt and answer, frequency and presence over the
    answer; one row, plain Python."""
    out = list(logits)
    for token, bias in params.logit_bias.items():
        out[token] += bias
    for token in {*prompt, *answer}:
        r = params.repetition_penalty
        out[token] = out[token] / r if out[token] > 0 else out[token] * r
    for token in set(answer):
        out[token] -= params.frequency_penalty * answer.count(token) + params.presence_penalty
    return out


def decode_from_scratch(folder: Path, prompt: list[int], params: SamplingParams) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    answer: list[int] = []
    with torch.inference_mode():
        for _ in range(params.max_tokens):
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, -1].tolist()
            answer.append(int(np.argmax(from_scratch(logits, prompt, answer, params))))
    return answer


def test_rows_of_a_tree_are_penalised_by_their_own_paths() -> None:
    """Among rows of others, of a tree and of a finished prompt; the resumed tokens are answer."""
    tree = [(4, 0), (4, 1), (7, 0), (1, 3), (4, 2)]
    paths = [[], [4], [4, 4], [7], [7, 1], [4, 4, 4]]
    logits = torch.randn(10, 12, generator=torch.Generator().manual_seed(0)) * 2
    request = GenerateRequest(request_id="r", token_ids=(1, 2, 2, 8), num_resumed=1, sampling=HEAVY)
    plain = GenerateRequest(request_id="p", token_ids=(1, 2))
    sequences = [Sequence(i, r, (), 0, 16) for i, r in enumerate((plain, request, request, plain))]
    sequences[1].tokens.append(3)
    forest = forest_of([[(1, 0)], tree])
    shaped = penalties.penalised(logits, sequences, forest)
    answers_so_far = [[8, 3, *path] for path in paths] + [[8]]
    for row, answer in enumerate(answers_so_far, start=2):
        expected = from_scratch(logits[row].tolist(), [1, 2, 2], answer, HEAVY)
        assert shaped[row].tolist() == pytest.approx(expected, abs=1e-5)
    others = [0, 1, 9]
    assert torch.equal(shaped[others], logits[others])


def test_greedy_answers_with_penalties_equal_those_from_scratch(
    small_llama: Path, llama_cases: list[Case]
) -> None:
    engine = make_engine(small_llama, random_feature_drafter(small_llama))
    expected = [
        tuple(decode_from_scratch(small_llama, list(case.token_ids), HEAVY))
        for case in llama_cases
    ]  # fmt: skip
    assert answers(run_all(engine, llama_cases, HEAVY)) == expected
    assert expected != [case.answer[:16] for case in llama_cases]


def speculated(
    folder: Path, cases: list[Case], params: SamplingParams, alone: list[tuple[int, ...]]
) -> tuple[list[tuple[int, ...]], int]:
    """Answers with a drafter that often draws right, and how many of its tokens were accepted."""
    drafter = KnowingDrafter(thicket(np.random.default_rng(1), VOCAB))
    engine = make_engine(folder, drafter, kv_tokens=200)
    drafter.texts = {
        i: [*case.token_ids, *answer, *([0] * 8)]
        for i, (case, answer) in enumerate(zip(cases, alone, strict=True))
    }
    sequences = run_all(engine, cases, params)
    return answers(sequences), sum(sequence.tally.accepted for sequence in sequences)


@pytest.mark.parametrize("params", [HEAVY, SAMPLED], ids=["greedy", "sampled"])
def test_penalties_under_speculation_are_those_of_plain_decoding(
    small_llama: Path,
    llama_cases: list[Case],
    params: SamplingParams,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = make_engine(small_llama, None, "off")
    alone = [answers(run_all(plain, [case], params))[0] for case in llama_cases]
    got, accepted = speculated(small_llama, llama_cases, params, alone)
    assert got == alone
    assert accepted > 20

    # The control: penalties that do not follow the path inside the tree change answers, and the
    # drafter notices that what it is sent is not the text it knows.
    nothing = np.empty(0, np.int64)
    monkeypatch.setattr(penalties, "_paths", lambda forest, index: (nothing, nothing))
    with pytest.raises(AssertionError):
        assert speculated(small_llama, llama_cases, params, alone)[0] == alone


def test_a_resumed_answer_goes_on_as_before(small_llama: Path, llama_cases: list[Case]) -> None:
    engine = make_engine(small_llama, None, "off")
    case = llama_cases[0]
    whole = answers(run_all(engine, [case], SAMPLED))[0]
    request = GenerateRequest(
        request_id="resumed",
        token_ids=(*case.token_ids, *whole[:6]),
        num_resumed=6,
        sampling=msgspec.structs.replace(SAMPLED, max_tokens=10),
    )
    for given, is_right in (
        (request, True),
        (msgspec.structs.replace(request, num_resumed=0), False),
    ):
        sequence = engine.add(given)
        while engine.scheduler.has_work:
            engine.step()
        assert (tuple(sequence.tokens[sequence.num_prompt :]) == whole[6:]) is is_right


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_p", 1.5),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("frequency_penalty", float("nan")),
        ("logit_bias", {3: 101.0}),
        ("logit_bias", {-1: 1.0}),
    ],
)
def test_what_is_out_of_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(ClientError, match=field):
        SamplingParams(**{field: value})


def test_a_bias_outside_the_vocabulary_is_refused(
    small_llama: Path, llama_cases: list[Case]
) -> None:
    engine = make_engine(small_llama, None, "off")
    with pytest.raises(ClientError, match="vocabulary"):
        engine.add(llama_cases[0].request(SamplingParams(logit_bias={VOCAB: 1.0})))
