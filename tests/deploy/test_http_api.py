"""The HTTP API with the official client and a real engine, in one process."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from local_app import LocalSource, local_app, served
from served_app import wait_for

from smart_serve.bundled import EXAMPLE_PICTURE
from tests.vision.tls_hosts import Authority, host
from tests.vision.tls_hosts import body as http_body
from vision.fetch import PictureFetcher

MODEL = "smart-serve-bundled"
QUESTION = [{"role": "user", "content": "Describe the picture."}]
PICTURE = "data:image/png;base64," + base64.b64encode(EXAMPLE_PICTURE.read_bytes()).decode()


@pytest.fixture(scope="module")
def url(source: LocalSource) -> Iterator[str]:
    with served(local_app(source)) as one:
        yield one


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one:
        yield one


def chat(client: openai.OpenAI, **fields: Any) -> Any:
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


def test_usage_is_whole_after_a_stop_string(client: openai.OpenAI, source: LocalSource) -> None:
    image = {"type": "image_url", "image_url": {"url": PICTURE}}
    text = {"type": "text", "text": "Describe the picture."}
    messages = [{"role": "user", "content": [image, text]}]
    whole = chat(client, messages=messages, max_tokens=60)
    stop = whole.choices[0].message.content[20:26]
    cut = chat(client, messages=messages, max_tokens=60, stop=stop)
    assert cut.choices[0].finish_reason == "stop"
    assert whole.choices[0].message.content.startswith(cut.choices[0].message.content)
    assert stop not in cut.choices[0].message.content
    told = cut.usage.speculation
    assert 0 < cut.usage.completion_tokens < whole.usage.completion_tokens
    assert told["target_steps"] == len(told["tree_sizes"])
    assert told["drafted_tokens"] == sum(told["tree_sizes"])
    details = cut.usage.completion_tokens_details
    assert details.accepted_prediction_tokens == told["accepted_tokens"]
    rejected = told["drafted_tokens"] - told["accepted_tokens"]
    assert details.rejected_prediction_tokens == rejected
    wait_for(source.is_idle)


def test_text_completions(client: openai.OpenAI, url: str) -> None:
    ask: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 8}
    answer = client.completions.create(prompt=["There are", "A red"], **ask)
    assert [choice.index for choice in answer.choices] == [0, 1]
    body = {"model": MODEL, "prompt": "There are"}
    tokens = httpx.post(f"{url}/tokenize", json=body).json()
    assert tokens["count"] == len(tokens["tokens"])
    by_ids = client.completions.create(prompt=tokens["tokens"], **ask)
    assert by_ids.choices[0].text == answer.choices[0].text
    assert by_ids.usage is not None
    assert by_ids.usage.prompt_tokens == tokens["count"]
    stream = client.completions.create(prompt="There are", stream=True, **ask)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_tokens_there_and_back(url: str) -> None:
    def post(path: str, **fields: Any) -> Any:
        return httpx.post(f"{url}/{path}", json={"model": MODEL, **fields}).json()

    tokens = post("tokenize", prompt="three red circles")["tokens"]
    assert post("detokenize", tokens=tokens)["prompt"].strip() == "three red circles"
    image = {"type": "image_url", "image_url": {"url": PICTURE}}
    text = {"type": "text", "text": "Hi"}
    with_picture = post("tokenize", messages=[{"role": "user", "content": [image, text]}])
    without = post("tokenize", messages=[{"role": "user", "content": [text]}])
    assert with_picture["count"] > without["count"] + 30
    # A token that stands for a picture comes from a picture alone.
    (image_token,) = {
        token for token in with_picture["tokens"] if with_picture["tokens"].count(token) > 30
    }
    for path, fields in (
        ("v1/completions", {"prompt": [image_token]}),
        ("v1/completions", {"prompt": [10**6]}),
        ("v1/completions", {"prompt": [-1]}),
        ("detokenize", {"tokens": [10**30]}),
    ):
        assert post(path, **fields)["error"]["code"] == "invalid_token"
    assert post("tokenize")["error"]["code"] == "invalid_value"
    assert post("tokenize", prompt="a", messages=[])["error"]["code"] == "invalid_value"


def test_models_and_health(client: openai.OpenAI, url: str) -> None:
    (card,) = client.models.list()
    assert client.models.retrieve(card.id) == card
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")
    assert httpx.get(f"{url}/live").json() == {"status": "ok"}
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "replicas": {"default": 1}}


async def test_the_asynchronous_client(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream: Any = await client.chat.completions.create(  # type: ignore[call-overload]
            model=MODEL, messages=QUESTION, max_tokens=5, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


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


def test_a_bias_and_a_penalty_change_the_answer(client: openai.OpenAI, url: str) -> None:
    plain = chat(client).choices[0].message.content
    first = httpx.post(f"{url}/tokenize", json={"model": MODEL, "prompt": plain}).json()["tokens"]
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
    streamed = []
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


def test_a_body_that_does_not_come_is_not_waited_for(url: str) -> None:
    place = httpx.URL(url)
    with socket.create_connection((place.host, place.port), timeout=30) as one:
        one.sendall(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        assert one.recv(100).startswith(b"HTTP/1.1 408")


def test_a_client_that_leaves_frees_every_choice(url: str, source: LocalSource) -> None:
    body = {"model": MODEL, "messages": QUESTION, "n": 4, "stream": True, "temperature": 1.9}
    target = f"{url}/v1/chat/completions"
    with httpx.Client() as http, http.stream("POST", target, json=body) as response:
        next(response.iter_lines())
    wait_for(source.is_idle)


async def test_pictures_are_fetched_only_where_a_host_is_allowed(
    url: str, source: LocalSource, tmp_path: Path
) -> None:
    async def answer(path: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(
            http_body(EXAMPLE_PICTURE.read_bytes() if path == b"/a.png" else b"no picture")
        )

    async def local(name: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    authority = Authority(tmp_path)
    async with host(authority, answer) as one, httpx.AsyncClient(timeout=30) as client:
        place = f"pictures.test:{one.port}"
        fetcher = PictureFetcher(
            [place], resolve=local, may_connect=lambda _: True, tls=authority.client
        )

        async def ask(base: str, picture: str) -> httpx.Response:
            image = {"type": "image_url", "image_url": {"url": picture}}
            content = [image, {"type": "text", "text": "Describe the picture."}]
            messages = [{"role": "user", "content": content}]
            asked = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 8}
            return await client.post(f"{base}/v1/chat/completions", json=asked)

        refused = await ask(url, f"https://{place}/a.png")
        assert refused.json()["error"]["code"] == "invalid_image_url"
        assert one.connections == 0
        with served(local_app(source, fetcher=fetcher)) as fetching:
            fetched = await ask(fetching, f"https://{place}/a.png")
            sent = await ask(fetching, PICTURE)
            broken = await ask(fetching, f"https://{place}/b.png")
        assert fetched.json()["choices"] == sent.json()["choices"]
        error = broken.json()["error"]
        assert error["code"] == "unsupported_image_format"
        assert error["param"] == "messages[0].content[0].image_url.url"


def test_the_openapi_document_describes_what_is_sent(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    assert document["openapi"].startswith("3.1")

    def check(path: str, method: str, response: httpx.Response) -> None:
        described = document["paths"][path][method]["responses"]
        status = "200" if response.status_code == 200 else f"{response.status_code // 100}XX"
        schema = described[status]["content"]["application/json"]["schema"]
        jsonschema.validate(response.json(), {**schema, "components": document["components"]})

    chat_path = "/v1/chat/completions"
    good = {"model": MODEL, "messages": QUESTION, "max_tokens": 4}
    for body in (good, {**good, "n": 0}, {**good, "model": "x"}):
        check(chat_path, "post", httpx.post(url + chat_path, json=body))
    body = {"model": MODEL, "prompt": "a"}
    check("/tokenize", "post", httpx.post(f"{url}/tokenize", json=body))
    for path in ("/v1/models", "/health", "/live", "/status", "/openapi.json"):
        check(path, "get", httpx.get(url + path))
    with pytest.raises(jsonschema.ValidationError):  # control: it does not admit everything
        check("/health", "get", httpx.get(f"{url}/live"))
    schema = document["components"]["schemas"]["ChatRequest"]
    jsonschema.validate(good, {**schema, "components": document["components"]})
    assert schema["additionalProperties"] is False
