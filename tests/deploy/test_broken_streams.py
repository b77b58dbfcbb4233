"""A stream whose server dies, gone on with at another one, by what the client was told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from local_app import LocalSource, local_app, served
from served_app import wait_for

MODEL = "smart-serve-bundled"
# Past its end the model is not sure of itself: every seed gives another answer.
WILD = {"temperature": 2, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "zz is the 7 of"}], **WILD}


@pytest.fixture(scope="module")
def urls(source: LocalSource) -> Iterator[tuple[str, str]]:
    """Two ingresses that share nothing but the engine behind them."""
    with served(local_app(source)) as one, served(local_app(source)) as other:
        yield one, other


def post(url: str, path: str, body: dict[str, Any], last: str | None = None) -> Iterator[str]:
    """The lines of a stream; leaving it hangs up."""
    headers = {} if last is None else {"last-event-id": last}
    whole = {"model": MODEL, "stream": True, **body}
    with httpx.stream("POST", f"{url}/v1/{path}", json=whole, headers=headers, timeout=60) as one:
        assert one.status_code == 200, one.read()
        yield from one.iter_lines()


def text_of(lines: list[str]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for line in lines:
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                text = choice.get("text") or choice.get("delta", {}).get("content") or ""
                texts[choice["index"]] = texts.get(choice["index"], "") + text
    return texts


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", {**CHAT, "max_tokens": 40}),
        ("chat/completions", {**CHAT, "max_tokens": 24, "n": 3}),
        ("chat/completions", {**CHAT, "max_tokens": 60, "stop": ["left of", "zz"]}),
        ("completions", {"prompt": ["There are", "A red"], "max_tokens": 20, **WILD}),
    ],
)
def test_another_ingress_goes_on_after_the_last_event(
    urls: tuple[str, str], source: LocalSource, path: str, fields: dict[str, Any]
) -> None:
    whole = list(post(urls[0], path, fields))
    ids = [line.removeprefix("id: ") for line in whole if line.startswith("id: ")]
    for kept in (0, len(ids) // 2, len(ids) - 1):
        # Nobody gave a seed: only the id knows which was drawn.
        end = whole.index(f"id: {ids[kept]}") + 1
        rest = list(post(urls[1], path, fields, ids[kept]))
        assert text_of(whole[:end] + rest) == text_of(whole)
        assert "data: [DONE]" in rest
        assert rest.count("data: [DONE]") == 1
    another = list(post(urls[1], path, fields))
    assert text_of(another) != text_of(whole)  # control: without the id it is another answer
    wait_for(source.is_idle)


def test_what_cannot_be_gone_on_with_is_refused(urls: tuple[str, str]) -> None:
    body = {"model": MODEL, **CHAT, "max_tokens": 8, "stream": True}
    lines = list(post(urls[0], "chat/completions", body))
    last = next(line for line in reversed(lines) if line.startswith("id: ")).removeprefix("id: ")
    other = last.replace("chatcmpl", "cmpl")
    for fields, event_id, status, code in (
        ({}, "nonsense", 400, "invalid_last_event_id"),
        ({}, other, 400, "not_resumable"),
        ({"stream": False}, last, 400, "not_resumable"),
        ({"logprobs": True}, last, 400, "not_resumable"),
        ({"n": 2}, last, 400, "not_resumable"),
        ({"seed": 5}, last, 400, "not_resumable"),
        ({"speculation": {"verification": "naive"}}, last, 400, "not_resumable"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, last, 409, "stream_changed"),
    ):
        answer = httpx.post(
            f"{urls[1]}/v1/chat/completions",
            json={**body, **fields},
            headers={"last-event-id": event_id},
            timeout=60,
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), fields
