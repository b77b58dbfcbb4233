"""One request's trace, through every deployment that had a part in it.

The application samples nothing by itself, so what is traced is what a client asks to have traced.
"""

from __future__ import annotations

import base64
import io
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from PIL import Image
from served_app import ServedApp, wait_for

pytestmark = pytest.mark.serve
OURS = {"answer", "encode", "generate", "draft"}
SECRET = "Is Bob's knee in the picture?"


@dataclass(frozen=True)
class Trace:
    """Where a client says that its own span stands."""

    trace_id: str
    parent_id: str

    @property
    def header(self) -> dict[str, str]:
        return {"traceparent": f"00-{self.trace_id}-{self.parent_id}-01"}


def recorded(app: ServedApp) -> Iterator[dict[str, Any]]:
    """Everything that Serve's exporter has written: JSON objects end to end."""
    decoder = json.JSONDecoder()
    for path in app.logs.rglob("*_tracing.json"):
        text, at = path.read_text("utf-8"), 0
        while (at := next((i for i in range(at, len(text)) if text[i] == "{"), -1)) >= 0:
            try:
                span, at = decoder.raw_decode(text, at)
            except json.JSONDecodeError:
                break  # is being written
            yield span


def spans_of(app: ServedApp, trace: Trace) -> list[dict[str, Any]]:
    wanted = f"0x{trace.trace_id}"
    return [span for span in recorded(app) if span["context"]["trace_id"] == wanted]


def ask(app: ServedApp, headers: dict[str, str]) -> httpx.Response:
    # A new one each time: what is known already is not encoded.
    file = io.BytesIO()
    Image.frombytes("RGB", (8, 8), secrets.token_bytes(192)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    content = [picture, {"type": "text", "text": SECRET}]
    body = app.body(
        messages=[{"role": "user", "content": content}],
        max_tokens=24,
        ignore_eos=True,
        speculation={"policy": "chain:3"},  # `smart` does not draft where it does not pay.
    )
    url = f"{app.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return Trace(secrets.token_hex(16), secrets.token_hex(8))


@pytest.fixture(scope="module")
def usage(app: ServedApp, trace: Trace) -> dict[str, Any]:
    wait_for(lambda: app.call("target-default", "describe")["wire_ms"] is not None, 60)
    answer = ask(app, trace.header)
    assert answer.status_code == 200
    told: dict[str, Any] = answer.json()["usage"]
    return told


@pytest.fixture(scope="module")
def spans(app: ServedApp, trace: Trace, usage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    wait_for(lambda: {one["name"] for one in spans_of(app, trace)} >= OURS)
    found = spans_of(app, trace)
    names = [one["name"] for one in found if one["name"] in OURS]
    assert sorted(names) == sorted(OURS), "one span of each kind"
    return {one["context"]["span_id"]: one for one in found}


def by_name(spans: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    return next(one for one in spans.values() if one["name"] == name)


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_span_hangs_below_the_clients_own(
    spans: dict[str, dict[str, Any]], trace: Trace, name: str
) -> None:
    above = by_name(spans, name)["parent_id"]
    while above in spans:
        above = spans[above]["parent_id"]
    assert above == f"0x{trace.parent_id}"


def test_the_drafters_span_hangs_below_the_targets(spans: dict[str, dict[str, Any]]) -> None:
    target, drafter = by_name(spans, "generate"), by_name(spans, "draft")
    assert drafter["parent_id"] == target["context"]["span_id"]
    assert drafter["attributes"]["steps"] > 0
    # The target verifies no more than it was given.
    assert drafter["attributes"]["draft_nodes"] >= target["attributes"]["drafted_tokens"] > 0


def test_spans_tell_what_the_client_was_told(
    spans: dict[str, dict[str, Any]], usage: dict[str, Any]
) -> None:
    told = by_name(spans, "generate")["attributes"]
    details = usage["completion_tokens_details"]
    assert told["completion_tokens"] == usage["completion_tokens"] == 24
    assert told["accepted_tokens"] == details["accepted_prediction_tokens"]
    assert told["prompt_tokens"] == usage["prompt_tokens"]
    assert told["finish_reason"] == "length"
    answer = by_name(spans, "answer")["attributes"]
    assert answer["request_id"] == told["request_id"]
    assert (answer["completion_tokens"], answer["replicas"]) == (24, 1)
    assert by_name(spans, "encode")["attributes"]["pictures"] == 1


def test_a_request_that_is_not_traced_leaves_nothing(app: ServedApp, trace: Trace) -> None:
    before = {one["context"]["trace_id"] for one in recorded(app)}
    other = Trace(secrets.token_hex(16), secrets.token_hex(8))
    assert ask(app, {}).status_code == 200
    assert ask(app, other.header).status_code == 200
    wait_for(lambda: {one["name"] for one in spans_of(app, other)} >= OURS)
    after = {one["context"]["trace_id"] for one in recorded(app)}
    assert after - before == {f"0x{other.trace_id}"}


def test_no_span_tells_what_was_asked(app: ServedApp, spans: dict[str, dict[str, Any]]) -> None:
    assert "Bob" not in json.dumps(list(recorded(app)))
