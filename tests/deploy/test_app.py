"""The whole application on Ray, by its public faces only."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import secrets
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from served_app import ServedApp, wait_for

from smart_serve import LLM, SamplingParams

pytestmark = pytest.mark.serve

QUESTIONS = ("How many shapes are there?", "What is to the left?", "Describe the picture.", "Hi")


@pytest.fixture(scope="module")
def llm(app: ServedApp) -> LLM:
    # Plain decoding: what the application drafts must not show. It starts after the application, so
    # that the two do not measure themselves on the same cores at once.
    return LLM(drafter=None, policy="off", max_running=4, kv_tokens=4096)


@pytest.fixture(scope="module")
def png() -> bytes:
    picture = Image.new("RGB", (96, 64), "white")
    picture.paste("red", (10, 10, 40, 40))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def with_picture(data: bytes, text: str = "Describe the picture.") -> list[dict[str, object]]:
    image = {"type": "image_url", "image_url": {"url": data_url(data)}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"temperature": 0.8, "seed": 11},
        {"temperature": 1.5, "seed": -5, "top_p": 0.9, "top_k": 20},
    ],
)
def test_answers_are_those_of_the_library(
    app: ServedApp, llm: LLM, png: bytes, sampling: dict[str, float]
) -> None:
    params = SamplingParams(max_tokens=24, **sampling)
    prompts = [{"prompt": text, "images": [png]} for text in QUESTIONS]
    for question, expected in zip(QUESTIONS, llm.generate(prompts, params), strict=True):
        messages = with_picture(png, question)
        answer = app.ask(messages=messages, max_tokens=24, **sampling).json()
        assert answer["choices"][0]["message"]["content"] == expected.text
        assert answer["usage"]["completion_tokens"] == len(expected.token_ids)


def test_python_handle(app: ServedApp, llm: LLM, png: bytes) -> None:
    stream = app.handle.generate.options(stream=True)
    *pieces, usage = stream.remote("Describe the picture.", images=[png], max_tokens=16)
    prompt = {"prompt": "Describe the picture.", "images": [png]}
    (expected,) = llm.generate([prompt], SamplingParams(max_tokens=16))
    assert "".join(pieces) == expected.text
    assert usage["completion_tokens"] == len(expected.token_ids)
    *again, _ = stream.remote(with_picture(png), max_tokens=16, temperature=0)
    # Where the pieces are cut depends on the draft trees, the text does not.
    assert "".join(again) == expected.text
    with pytest.raises(Exception, match="max_tokens must be at least 1"):
        list(stream.remote("Hello", max_tokens=0))
    for fields in ({"n": 2}, {"logprobs": True}):
        with pytest.raises(Exception, match="streams the text of one"):
            list(stream.remote(with_picture(png), **fields))
    with pytest.raises(Exception, match="sampling takes"):
        list(stream.remote("Hello", tokens=3))


def test_32_clients_at_once(app: ServedApp) -> None:
    bodies = [app.body(QUESTIONS[i % 4], max_tokens=8 + i % 5, stream=True) for i in range(32)]
    expected = {
        (i % 4, i % 5): app.ask(text=QUESTIONS[i % 4], max_tokens=8 + i % 5).json()
        for i in range(20)
    }

    async def one(client: httpx.AsyncClient, body: dict[str, object]) -> str:
        events = []
        url = f"{app.url}/v1/chat/completions"
        async with client.stream("POST", url, json=body, timeout=90) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    events.append(line.removeprefix("data: "))
        assert events[-1] == "[DONE]"
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
        return "".join(delta.get("content") or "" for delta in deltas)

    async def all_of_them() -> list[str]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=32)) as client:
            return await asyncio.gather(*(one(client, body) for body in bodies))

    texts = asyncio.run(all_of_them())
    for i, text in enumerate(texts):
        assert text == expected[i % 4, i % 5]["choices"][0]["message"]["content"]
    app.wait_until_idle()


def test_bad_requests_are_refused_and_the_server_goes_on(app: ServedApp, png: bytes) -> None:
    broken = png[:60] + bytes(len(png) - 60)
    cases = [
        ({"n": 9}, 400, "invalid_value"),
        ({"temperature": 5}, 400, "invalid_request"),
        ({"max_tokens": 0}, 400, "invalid_value"),
        ({"tools": []}, 400, "unknown_field"),
        ({"messages": "hello"}, 400, "invalid_type"),
        ({"messages": []}, 400, "empty_messages"),
        ({"model": "gpt-4"}, 404, "model_not_found"),
        ({"messages": with_picture(b"not a picture")}, 400, "unsupported_image_format"),
        # Its header is fine, so only the vision encoder can find out.
        ({"messages": with_picture(broken)}, 400, "invalid_image"),
        ({"messages": with_picture(broken), "stream": True}, 400, "invalid_image"),
        ({"text": "shape " * 20_000}, 400, "context_length_exceeded"),
        ({"text": "x" * 2_000_001}, 413, "request_too_large"),
        ({"speculation": {"policy": "magic"}}, 400, "invalid_value"),
    ]
    for fields, status, code in cases:
        response = app.ask(**fields)
        assert response.status_code == status, (fields.keys(), response.text)
        error = response.json()["error"]
        assert error["code"] == code
        assert error["message"]
        assert error["type"] == "invalid_request_error"
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/models/other", 404),
    ):
        response = httpx.request(method, app.url + path)
        assert (response.status_code, "error" in response.json()) == (status, True)
    raw = httpx.post(f"{app.url}/v1/chat/completions", content=b"{nonsense")
    assert (raw.status_code, raw.json()["error"]["code"]) == (400, "invalid_json")
    assert app.ask(max_tokens=2).status_code == 200
    app.wait_until_idle()


def test_a_body_without_a_length_is_limited_too(app: ServedApp) -> None:
    pieces = (b" " * 2**16 for _ in range(100))
    response = httpx.post(f"{app.url}/v1/chat/completions", content=pieces, timeout=30)
    assert response.status_code == 413


def test_clients_that_hang_up_free_their_blocks(app: ServedApp, png: bytes) -> None:
    # Enough of them that their answers last longer than it takes to look.
    body = app.body(messages=with_picture(png), stream=True)
    with ExitStack() as streams, httpx.Client(timeout=60) as client:
        for _ in range(16):
            url = f"{app.url}/v1/chat/completions"
            response = streams.enter_context(client.stream("POST", url, json=body))
            assert response.status_code == 200
        assert app.blocks()["running"] > 0
    app.wait_until_idle()


def num_ended(app: ServedApp) -> int:
    """Answers that the target has told to their ends."""
    logs = app.logs.rglob("*target-default*.log")
    return sum(path.read_text("utf-8", "replace").count(" ended: ") for path in logs)


def test_a_client_that_does_not_wait_for_its_whole_answer_frees_its_blocks(app: ServedApp) -> None:
    before = num_ended(app)
    body = app.body(max_tokens=1800, ignore_eos=True)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{app.url}/v1/chat/completions", json=body, timeout=1)
    app.wait_until_idle()
    # The control: of a client that waits the end is told.
    assert app.ask(max_tokens=2).status_code == 200
    wait_for(lambda: num_ended(app) > before)
    assert num_ended(app) == before + 1


def test_cancelling_a_handle_frees_its_blocks_at_once(app: ServedApp) -> None:
    stream = app.handle.generate.options(stream=True)
    pieces, before = stream.remote("Hi", max_tokens=1800, ignore_eos=True), num_ended(app)
    next(pieces)
    assert app.blocks()["running"] == 1
    pieces.cancel()
    app.wait_until_idle()
    assert num_ended(app) == before


def test_status_and_health(app: ServedApp) -> None:
    def told(path: str) -> dict[str, Any]:
        answer = httpx.get(f"{app.url}/{path}", timeout=30)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def fresh() -> list[str]:
        replicas = told("status")["replicas"]
        return [one["report"]["pool"] for one in replicas if one["age_ms"] < 3000]

    assert told("health") == {"status": "ok", "replicas": {"default": 1}}
    wait_for(lambda: fresh() == ["default"])


def test_a_request_id_is_in_the_log_of_every_replica_and_its_content_in_none(
    app: ServedApp,
) -> None:
    name, secret = "trace-me-7f3a", "Is Alice's blood pressure high?"
    # A new one: what is known already is not encoded.
    buffer = io.BytesIO()
    Image.frombytes("RGB", (8, 8), secrets.token_bytes(192)).save(buffer, "PNG")
    picture = buffer.getvalue()
    body = app.body(messages=with_picture(picture, secret), max_tokens=3)
    headers = {"x-request-id": name}
    response = httpx.post(f"{app.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert response.headers["x-request-id"] == name
    logs: dict[Path, str] = {}
    lines: dict[str, str] = {}

    def are_written() -> bool:
        # The ingress writes its line after the answer.
        logs.update({p: p.read_text("utf-8", "replace") for p in app.logs.rglob("*.log")})
        named = [(p.name, line) for p, text in logs.items() for line in text.splitlines()]
        lines.update({file: line for file, line in named if name in line})
        return all(any(part in file for file in lines) for part in parts)

    parts = ("ingress", "vision-encoder", "target-default")
    wait_for(are_written)
    assert "completion_tokens=" in next(line for file, line in lines.items() if "ingress" in file)
    everything = "".join(logs.values())
    assert "blood" not in everything
    assert data_url(picture)[-40:] not in everything


def test_killing_the_drafter_costs_no_token(app: ServedApp) -> None:
    wait_for(lambda: app.call("target-default", "describe")["wire_ms"] is not None)
    sampling = {"max_tokens": 300, "ignore_eos": True}
    stream = app.handle.generate.options(stream=True)
    *expected, _ = stream.remote(QUESTIONS[0], **sampling)
    pieces = []
    for i, piece in enumerate(stream.remote(QUESTIONS[0], **sampling)):
        pieces.append(piece)
        if i == 10:
            os.kill(app.call("drafter", "describe")["pid"], signal.SIGKILL)
    assert "".join(pieces[:-1]) == "".join(expected)
    # Another drafter is found in the background.
    wait_for(lambda: app.call("target-default", "describe")["wire_ms"] is not None, 60)
    assert app.ask(max_tokens=4).status_code == 200
    app.wait_until_idle()


@pytest.mark.slow
def test_a_stream_outlives_its_target(app: ServedApp) -> None:
    sampling = {"max_tokens": 300, "ignore_eos": True, "temperature": 0.7, "seed": 3}
    stream = app.handle.generate.options(stream=True)
    *expected, _ = stream.remote(QUESTIONS[0], **sampling)
    pieces = []
    for i, piece in enumerate(stream.remote(QUESTIONS[0], **sampling)):
        pieces.append(piece)
        if i == 10:
            os.kill(app.call("target-default", "describe")["pid"], signal.SIGKILL)
    assert "".join(pieces[:-1]) == "".join(expected)
    assert pieces[-1]["completion_tokens"] == 300
    app.wait_until_idle()
