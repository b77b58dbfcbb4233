"""The official Python client, against the API behind uvicorn alone and behind Ray's proxy."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from smart_serve.bundled import EXAMPLE_PICTURE

MODEL = "smart-serve-bundled"
QUESTION = [{"role": "user", "content": "Describe the picture."}]
PICTURE = "data:image/png;base64," + base64.b64encode(EXAMPLE_PICTURE.read_bytes()).decode()


@pytest.fixture(scope="module")
def client(base: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as one:
        yield one


def chat(client: Any, **fields: Any) -> Any:
    asked = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 12, **fields}
    return client.chat.completions.create(**asked)


def test_several_choices_are_those_of_their_seeds(client: openai.OpenAI) -> None:
    # Nothing that the model was trained for, so that it is not sure of itself.
    messages = [{"role": "user", "content": "zz is the 7 of"}]
    sampling = {"temperature": 2, "max_tokens": 10, "messages": messages}
    together = chat(client, n=3, seed=5, **sampling)
    alone = [chat(client, seed=5 + i, **sampling).choices[0] for i in range(3)]
    texts = [choice.message.content for choice in together.choices]
    assert texts == [choice.message.content for choice in alone]
    assert len(set(texts)) > 1
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert together.usage.completion_tokens > 10
    streamed = ["", "", ""]
    for chunk in chat(client, n=3, seed=5, stream=True, **sampling):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_usage_is_whole_after_a_stop_string(client: openai.OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": PICTURE}}
    text = {"type": "text", "text": "Describe the picture."}
    messages = [{"role": "user", "content": [image, text]}]
    whole = chat(client, messages=messages, max_tokens=60)
    stop = whole.choices[0].message.content[20:26]
    cut = chat(client, messages=messages, max_tokens=60, stop=stop)
    assert cut.choices[0].finish_reason == "stop"
    assert whole.choices[0].message.content.startswith(cut.choices[0].message.content)
    assert stop not in cut.choices[0].message.content
    of_several = chat(client, messages=messages, max_tokens=60, stop=["never", stop, "at all"])
    assert of_several.choices == cut.choices
    told = cut.usage.speculation
    assert 0 < cut.usage.completion_tokens < whole.usage.completion_tokens
    assert told["target_steps"] == len(told["tree_sizes"])
    assert told["drafted_tokens"] == sum(told["tree_sizes"])
    details = cut.usage.completion_tokens_details
    assert details.accepted_prediction_tokens == told["accepted_tokens"]
    rejected = told["drafted_tokens"] - told["accepted_tokens"]
    assert details.rejected_prediction_tokens == rejected


def test_text_completions(client: openai.OpenAI, base: str) -> None:
    ask: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 8}
    answer = client.completions.create(prompt=["There are", "A red"], **ask)
    assert [choice.index for choice in answer.choices] == [0, 1]
    body = {"model": MODEL, "prompt": "There are"}
    tokens = httpx.post(f"{base}/tokenize", json=body).json()
    assert tokens["count"] == len(tokens["tokens"])
    by_ids = client.completions.create(prompt=tokens["tokens"], **ask)
    assert by_ids.choices[0].text == answer.choices[0].text
    assert by_ids.usage is not None
    assert by_ids.usage.prompt_tokens == tokens["count"]
    stream = client.completions.create(prompt="There are", stream=True, **ask)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_models_and_health(client: openai.OpenAI, base: str) -> None:
    (card,) = client.models.list()
    assert client.models.retrieve(card.id) == card
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")
    assert httpx.get(f"{base}/live").json() == {"status": "ok"}
    assert httpx.get(f"{base}/health").json() == {"status": "ok", "replicas": {"default": 1}}


async def test_the_asynchronous_client(client: openai.OpenAI, base: str) -> None:
    options = {"include_usage": True}
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as other:

        async def streamed(words: int) -> tuple[str, int]:
            stream = await chat(other, max_tokens=words, stream=True, stream_options=options)
            *news, last = [chunk async for chunk in stream]
            assert all(chunk.usage is None for chunk in news)
            assert news[-1].choices[0].finish_reason in ("stop", "length")
            assert last.choices == []
            text = "".join(chunk.choices[0].delta.content or "" for chunk in news)
            return text, last.usage.completion_tokens

        answers = await asyncio.gather(*map(streamed, range(1, 9)))
        left = await chat(other, max_tokens=900, stream=True, extra_body={"ignore_eos": True})
        await anext(left)
        await left.close()  # `base` waits for its blocks
    for words, (text, tokens) in enumerate(answers, 1):
        whole = chat(client, max_tokens=words)
        assert (text, tokens) == (whole.choices[0].message.content, whole.usage.completion_tokens)


def test_refusals_reach_the_client(client: openai.OpenAI) -> None:
    for fields, param in (
        ({"n": 99}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"max_tokens": 4000}, "messages"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"extra_body": {"speculation": {"policy": "magic"}}}, "speculation.policy"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(client, **fields)
        assert caught.value.param == param


def test_errors_have_the_types_of_the_client(client: openai.OpenAI, base: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, model="gpt-4")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat(client, temperature=3, stream=True)
    with pytest.raises(openai.APIStatusError) as large:
        chat(client, messages=[{"role": "user", "content": "x" * 2_000_001}])
    assert (large.value.status_code, large.value.code) == (413, "request_too_large")
    with pytest.raises(openai.APITimeoutError):
        chat(client, max_tokens=900, timeout=0.05, extra_body={"ignore_eos": True})
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="a")


def test_a_bias_and_a_penalty_change_the_answer(client: openai.OpenAI, base: str) -> None:
    plain = chat(client).choices[0].message.content
    first = httpx.post(f"{base}/tokenize", json={"model": MODEL, "prompt": plain}).json()["tokens"]
    biased = chat(client, logit_bias={str(token): -100 for token in first})
    assert biased.choices[0].message.content != plain
    long = {"max_tokens": 40, "extra_body": {"ignore_eos": True}}
    free = chat(client, **long)
    penalised = chat(client, presence_penalty=2, frequency_penalty=2, **long)
    assert free.usage.completion_tokens == penalised.usage.completion_tokens == 40
    assert free.choices[0].message.content != penalised.choices[0].message.content


def test_logprobs_are_those_of_the_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 3}
    choice = chat(client, **asked).choices[0]
    content = choice.logprobs.content
    spelled = b"".join(bytes(token.bytes) for token in content).decode()
    assert spelled.strip() == choice.message.content.strip()
    for token in content:
        # Greedy: the emitted token is the likeliest.
        assert token.top_logprobs[0].token == token.token
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-4)
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )
        assert len(token.top_logprobs) == 3
    streamed: list[Any] = []
    for chunk in chat(client, stream=True, **asked):
        for part in chunk.choices:
            streamed += part.logprobs.content if part.logprobs else []
    assert [one.token for one in streamed] == [one.token for one in content]
    assert chat(client).choices[0].logprobs is None
    text = client.completions.create(
        model=MODEL, prompt="There are", logprobs=2, max_tokens=6, temperature=0
    ).choices[0]
    assert text.logprobs is not None
    told = text.logprobs
    assert told.tokens is not None
    assert told.text_offset is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert "".join(told.tokens).strip() == text.text.strip()
    assert told.text_offset[1] == len(told.tokens[0])
    assert [max(top.values()) for top in told.top_logprobs] == pytest.approx(
        told.token_logprobs, abs=1e-4
    )
