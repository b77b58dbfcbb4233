"""`speculation: {"trace": true}`: whom each token of a stream came from, and each step's tree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from local_app import LocalSource, local_app, served

MODEL = "smart-serve-bundled"
CHAT = {"messages": [{"role": "user", "content": "Describe the picture."}]}
PROMPT = {"prompt": "There are"}


@pytest.fixture(scope="module")
def url(source: LocalSource) -> Iterator[str]:
    with served(local_app(source)) as one:
        yield f"{one}/v1"


def events(url: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    whole = {"model": MODEL, "temperature": 0, "max_tokens": 40, "stream": True, **body}
    whole["stream_options"] = {"include_usage": True}
    with httpx.stream("POST", f"{url}/{path}", json=whole, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line for line in answer.iter_lines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_tokens_are_those_of_the_text_and_trees_those_of_the_tokens(url: str) -> None:
    policy = {"policy": "eagle2", "trace": True}
    sent = events(url, "chat/completions", {**CHAT, "speculation": policy})
    choices = [choice for event in sent for choice in event["choices"]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    told = [choice["speculation"] for choice in choices if "speculation" in choice]
    tokens = [token for news in told for token in news["tokens"]]
    assert bytes(b for token in tokens for b in token["bytes"]).decode().strip() == text.strip()
    usage = sent[-1]["usage"]
    assert sum(token["accepted"] for token in tokens) > 0
    steps = [news["step"] for news in told if news["step"] is not None]
    assert len(steps) == usage["speculation"]["target_steps"] - 1
    fates = [node["fate"] for step in steps for node in step["tree"]]
    details = usage["completion_tokens_details"]
    assert fates.count("accepted") == details["accepted_prediction_tokens"]
    assert fates.count("rejected") == details["rejected_prediction_tokens"]
    assert fates.count("pruned") > 0
    for news in told[1:]:
        path = [node["text"] for node in news["step"]["tree"] if node["fate"] == "accepted"]
        own = [token["text"] for token in news["tokens"] if token["accepted"]]
        assert path[: len(own)] == own
        assert news["step"]["step_ms"] > 0 < news["step"]["predicted_ms"]


@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", PROMPT)])
def test_nothing_is_told_unless_asked(url: str, path: str, body: dict[str, Any]) -> None:
    for asked in (False, True):
        sent = events(url, path, {**body, "speculation": {"trace": asked}})
        told = [choice for event in sent for choice in event["choices"] if "speculation" in choice]
        assert bool(told) == asked


def test_a_trace_is_of_a_stream(url: str) -> None:
    body = {"model": MODEL, **CHAT, "speculation": {"trace": True}}
    answer = httpx.post(f"{url}/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "speculation.trace"
