"""Log-probabilities against a forward pass of transformers, with and without speculation."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from draft_doubles import KnowingDrafter, thicket
from engine_rig import Case, answers, make_engine, run_all
from small_models import VOCAB
from transformers import AutoModelForCausalLM

from smart_serve.engine.engine import Engine
from smart_serve.engine.sequence import Sequence
from smart_serve.errors import ClientError
from smart_serve.messages import SamplingParams, TokenLogprob

GREEDY = SamplingParams(max_tokens=14, logprobs=3, ignore_eos=True)
SAMPLED = msgspec.structs.replace(GREEDY, temperature=0.8, top_p=0.9, presence_penalty=0.5, seed=2)
Said = list[list[TokenLogprob]]


def run(
    engine: Engine, cases: list[Case], params: list[SamplingParams]
) -> tuple[list[Sequence], Said]:
    """All requests together; what was said of each one's tokens."""
    sequences = [
        engine.add(case.request(chosen, str(i)))
        for i, (case, chosen) in enumerate(zip(cases, params, strict=True))
    ]
    said: Said = [[] for _ in sequences]
    while engine.scheduler.has_work:
        for emission in engine.step():
            assert emission.chunk is not None
            asks = emission.sequence.request.sampling.logprobs is not None
            assert len(emission.chunk.logprobs) == (len(emission.token_ids) if asks else 0)
            said[sequences.index(emission.sequence)].extend(emission.chunk.logprobs)
    return sequences, said


def from_scratch(folder: Path, sequence: Sequence) -> torch.Tensor:
    """log softmax of transformers' logits before each emitted token. [n, V]"""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([sequence.tokens])).logits[0]
    return torch.log_softmax(logits[sequence.num_prompt - 1 : -1], dim=-1)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_they_are_those_of_the_model_itself_also_under_speculation(
    small_llama: Path, llama_cases: list[Case], params: SamplingParams
) -> None:
    plain = make_engine(small_llama, None, "off")
    alone = [answers(run_all(plain, [case], params))[0] for case in llama_cases]
    drafter = KnowingDrafter(thicket(np.random.default_rng(1), VOCAB))
    engine = make_engine(small_llama, drafter)
    drafter.texts = {
        i: [*case.token_ids, *answer, *([0] * 8)]
        for i, (case, answer) in enumerate(zip(llama_cases, alone, strict=True))
    }
    # Every second request asks for another number of rivals, one for none at all.
    wanted = [3, 1, None, 0, 20, 3]
    mixed = [msgspec.structs.replace(params, logprobs=count) for count in wanted]
    sequences, said = run(engine, llama_cases, mixed)
    assert answers(sequences) == alone
    assert sum(sequence.tally.accepted for sequence in sequences) > 20
    for sequence, values, count in zip(sequences, said, wanted, strict=True):
        if count is None:
            assert values == []
            continue
        expected = from_scratch(small_llama, sequence)
        for row, token, value in zip(expected, answers([sequence])[0], values, strict=True):
            assert value.logprob == pytest.approx(float(row[token]), abs=1e-4)
            best = row.topk(count)
            assert [token for token, _ in value.top] == best.indices.tolist()
            assert [x for _, x in value.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_row_further_on_says_something_else(small_llama: Path, llama_cases: list[Case]) -> None:
    """The control: the comparison above sees a shift by one token."""
    sequences, said = run(make_engine(small_llama, None, "off"), llama_cases[:1], [GREEDY])
    expected = from_scratch(small_llama, sequences[0])[1:]
    tokens = answers(sequences)[0]
    off = [abs(v.logprob - float(r[t])) for v, r, t in zip(said[0], expected, tokens, strict=False)]
    assert max(off) > 0.1


@pytest.mark.parametrize("count", [-1, 21])
def test_more_than_the_api_allows_is_refused(count: int) -> None:
    with pytest.raises(ClientError, match="logprobs"):
        SamplingParams(logprobs=count)
