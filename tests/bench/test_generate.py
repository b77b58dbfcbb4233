"""What is compared with: transformers' `generate` gives the same answers, whatever its cache."""

from __future__ import annotations

import pytest

from smart_serve.bench.figures import Load
from smart_serve.bench.generate import GenerateBench
from smart_serve.bench.workload import picture_questions
from smart_serve.llm import LLM
from smart_serve.messages import SamplingParams


@pytest.mark.parametrize("has_static_cache", [False, True])
def test_generate_answers_as_the_engine_does(has_static_cache: bool) -> None:
    llm, questions = LLM(dtype="float32", max_running=2), picture_questions(3, seed=7)
    bench = GenerateBench(llm, questions, has_static_cache=has_static_cache)
    expected = [
        llm.generate(
            [{"prompt": one.text, "images": list(one.pictures)}],
            SamplingParams(max_tokens=one.max_tokens, temperature=0),
        )[0].token_ids
        for one in questions
    ]
    for places in ([0, 1], [2]):
        answers = bench.answers(places, temperature=0.0)
        assert [tuple(one) for one in answers] == [expected[place] for place in places]
    sample = bench.run(Load(batch=2, temperature=0.0, requests=4), first=0)
    assert sample.tokens == sum(len(expected[place]) for place in (0, 1, 2, 0))
