"""Every route is public or needs a key; the log tells who asked, and not what."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import httpx
import pytest
from local_app import LocalSource, local_app, served
from served_app import wait_for
from starlette.applications import Starlette
from starlette.routing import Route
from test_keys import key

from deploy.gate import GuardedRoute
from deploy.keys import KeyRing
from deploy.routes import CONSOLE_ROUTES, ROUTES

GUEST, OPERATOR, BUSY = "guest-key-0123456789", "operator-key-0123456789", "busy-key-0123456789"
ALICE = "Alice's blood pressure is 180 over 110"


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def body(**fields: object) -> dict[str, object]:
    messages = [{"role": "user", "content": ALICE}]
    return {"model": "smart-serve-bundled", "messages": messages, "max_tokens": 4, **fields}


@pytest.fixture(scope="module")
def gated(source: LocalSource) -> Starlette:
    keys = [
        key(GUEST, name="guest"),
        key(OPERATOR, name="operator", operator=True),
        key(BUSY, name="busy", max_concurrent=1, requests_per_minute=5),
    ]
    app = local_app(source, KeyRing(keys))
    assert isinstance(app, Starlette)
    return app


@pytest.fixture(scope="module")
def url(gated: Starlette) -> Iterator[str]:
    with served(gated) as one:
        yield one


def path_of(route: str) -> str:
    return re.sub(r"\{[^}]*\}", "smart-serve-bundled", route.replace("{file}", "console.js"))


def test_every_route_of_the_application_is_in_the_table_and_guarded(gated: Starlette) -> None:
    table = {(route.method, route.path) for route in (*ROUTES, *CONSOLE_ROUTES)}
    found = set()
    for route in gated.routes:
        assert isinstance(route, Route)
        assert isinstance(route.endpoint, GuardedRoute)
        found |= {(method, route.path) for method in route.methods or () if method != "HEAD"}
    assert found == table


def test_without_a_key_only_public_routes_answer(url: str) -> None:
    public = set()
    for route in (*ROUTES, *CONSOLE_ROUTES):
        for value in (
            b"",
            b"Bearer",
            b"Bearer wrong-key-0123456789",
            b"Bearer \xff",
            f"Basic {GUEST}".encode(),
            GUEST.encode(),
        ):
            headers = [(b"authorization", value)] if value else []
            answer = httpx.request(route.method, url + path_of(route.path), headers=headers)
            if route.access == "public":
                assert answer.status_code == 200
                public.add(route.path)
            else:
                assert answer.status_code == 401, route.path
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["type"] == "authentication_error"
    assert public == {"/health", "/live", "/openapi.json", "/console", "/console/{file}"}


def test_without_a_key_nobody_learns_which_paths_there_are(url: str) -> None:
    for method, path in (("GET", "/nothing"), ("GET", "/v1/chat/completions"), ("PUT", "/status")):
        answer = httpx.request(method, url + path)
        assert (answer.status_code, "allow" in answer.headers) == (401, False)
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/live/", 404),
        ("GET", "/v1/chat/completions", 405),
    ):
        answer = httpx.request(method, url + path, headers=bearer(GUEST))
        assert answer.status_code == status
        assert "error" in answer.json()
        assert answer.headers.get("allow") == ("POST" if status == 405 else None)


def test_a_key_opens_what_it_may(url: str) -> None:
    chat = f"{url}/v1/chat/completions"
    assert httpx.post(chat, json=body(), headers=bearer(GUEST)).status_code == 200
    assert httpx.get(f"{url}/v1/models", headers=bearer(GUEST)).status_code == 200
    refused = httpx.get(f"{url}/status", headers=bearer(GUEST))
    assert refused.status_code == 403
    assert refused.json()["error"]["type"] == "permission_error"
    assert httpx.get(f"{url}/status", headers=bearer(OPERATOR)).status_code == 200


def test_a_key_over_its_limits_waits(url: str, source: LocalSource) -> None:
    chat = f"{url}/v1/chat/completions"
    long = body(stream=True, max_tokens=900, ignore_eos=True)
    headers = bearer(BUSY)
    with (
        httpx.Client(headers=headers) as client,
        client.stream("POST", chat, json=long) as stream,
    ):
        assert stream.status_code == 200
        lines = stream.iter_lines()
        next(lines)
        second = httpx.post(chat, json=body(), headers=headers)
        assert (second.status_code, second.headers["retry-after"]) == (429, "1")
        assert httpx.post(chat, json=body(), headers=bearer(GUEST)).status_code == 200
    # The place is free again once the stream has ended.
    wait_for(lambda: httpx.get(f"{url}/v1/models", headers=headers).status_code == 200)
    wait_for(source.is_idle)
    seen = [httpx.get(f"{url}/v1/models", headers=headers) for _ in range(5)]
    assert seen[-1].status_code == 429
    assert 1 <= int(seen[-1].headers["retry-after"]) <= 12
    assert seen[-1].json()["error"]["code"] == "rate_limit_exceeded"


def test_the_log_tells_who_and_how_much_but_no_content(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    chat = f"{url}/v1/chat/completions"
    answer = httpx.post(chat, json=body(user="alice@example.org"), headers=bearer(GUEST)).json()
    httpx.post(chat, json=body(messages=ALICE), headers=bearer(GUEST))
    httpx.get(f"{url}/{ALICE}?{ALICE}", headers=bearer(GUEST))
    wait_for(lambda: sum("endpoint" in vars(record) for record in caplog.records) == 3)
    told = [vars(record) for record in caplog.records if "endpoint" in vars(record)]
    first = told[0]
    assert (first["key"], first["status"], first["answer_id"]) == ("guest", 200, answer["id"])
    assert first["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert first["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert [line["status"] for line in told] == [200, 400, 404]
    ours = [record for record in caplog.records if record.name.startswith(("ray", "smart", "uvi"))]
    text = "\n".join(record.getMessage() + json.dumps(vars(record), default=str) for record in ours)
    reply = answer["choices"][0]["message"]["content"]
    for secret in ("blood", "alice@", GUEST, reply):
        assert secret not in text
    assert "answer_id" in text  # control: it is the log that was searched
