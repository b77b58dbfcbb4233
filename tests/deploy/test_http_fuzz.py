"""Whatever arrives, the answer is of the documented kind, never a 5xx, and the server goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from json_values import ANYTHING, values_of
from local_app import LocalSource, local_app, served
from served_app import wait_for

from deploy.routes import OPENAPI, ROUTES

MODEL = "smart-serve-bundled"
DOCUMENT = json.loads(OPENAPI)
COMPONENTS = DOCUMENT["components"]["schemas"]
POSTS = [route for route in ROUTES if route.request is not None]
CHEAP: dict[str, Any] = {"max_tokens": 3, "max_completion_tokens": 3, "n": 2}
"""What would only cost time is bounded; its own checks are tested elsewhere."""
FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,  # so that the controls below cannot fail by bad luck
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def client(source: LocalSource) -> Iterator[httpx.Client]:
    with served(local_app(source)) as url, httpx.Client(base_url=url, timeout=60) as one:
        yield one


@pytest.fixture(autouse=True)
def _goes_on(client: httpx.Client, source: LocalSource) -> Iterator[None]:
    yield
    assert client.get("/live").status_code == 200
    wait_for(source.is_idle)


def check(path: str, response: httpx.Response) -> None:
    status = response.status_code
    assert status == 200 or 400 <= status < 500, response.text
    if response.headers["content-type"] != "application/json":
        assert status == 200
        assert response.text.endswith("data: [DONE]\n\n")
        return
    described = DOCUMENT["paths"][path]["post"]["responses"]["200" if status == 200 else "4XX"]
    schema = described["content"]["application/json"]["schema"]
    jsonschema.validate(response.json(), {**schema, "components": DOCUMENT["components"]})


def allowed(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies that the document allows, for the model that is served, and cheap."""

    def bounded(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "model": MODEL, **{key: CHEAP[key] for key in body if key in CHEAP}}

    return values_of(COMPONENTS[name], COMPONENTS).map(bounded)


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.path)
def test_bodies_that_the_document_allows(client: httpx.Client, route: Any) -> None:
    seen = set()

    @FUZZ
    @given(body=allowed(route.request.__name__))
    def run(body: dict[str, Any]) -> None:
        if "max_tokens" in COMPONENTS[route.request.__name__]["properties"]:
            body["max_tokens"] = body.get("max_completion_tokens") or 3
        response = client.post(route.path, json=body)
        check(route.path, response)
        seen.add(response.status_code)

    run()
    assert 200 in seen  # control: not everything is refused


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.path)
def test_bodies_with_one_thing_wrong(client: httpx.Client, route: Any) -> None:
    refused = 0

    @FUZZ
    @given(body=allowed(route.request.__name__), data=st.data())
    def run(body: dict[str, Any], data: st.DataObject) -> None:
        nonlocal refused
        name = data.draw(st.sampled_from([*body, "unknown"]))
        body[name] = data.draw(ANYTHING)
        if name in CHEAP and body[name] is not None and not isinstance(body[name], str):
            body[name] = -1
        if "max_tokens" in COMPONENTS[route.request.__name__]["properties"]:
            body.setdefault("max_tokens", 3)
        response = client.post(route.path, json=body)
        check(route.path, response)
        refused += response.status_code >= 400
        if name == "unknown":
            assert response.status_code >= 400

    run()
    assert refused > 10  # control: wrong bodies are what was sent


HOST = b"Host: a\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
GET = b"GET /live HTTP/1.1\r\n" + HOST


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00" * 5000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /live\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"get /live HTTP/9.9\r\n" + HOST + b"\r\n",
        b"GET http://a/live HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /%ff%00%0d%0a HTTP/1.1\r\n" + HOST + b"\r\n",
        GET[:20],
        GET + b"\r\n" * 1 + GET + b"\r\n",
        (GET + b"\r\n") * 50,
        GET + b"X: a\r\n" * 100_000 + b"\r\n",
        GET + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
        GET + b"X\r\n\r\n",
        GET + b": a\r\n\r\n",
        GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n{}",
        POST + b"Content-Length: 99999999999999999999\r\n\r\n{}",
        POST + b"Content-Length: abc\r\n\r\n{}",
        POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        POST + b"Content-Length: 100\r\n\r\n{}",
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        POST + b"Transfer-Encoding: gzip\r\n\r\n{}",
        POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
        POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
        POST + b"\r\n" + b"{}" * 1000,
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_bytes_that_are_not_quite_http(client: httpx.Client, raw: bytes) -> None:
    place = urlsplit(str(client.base_url))
    with socket.create_connection((place.hostname, place.port), timeout=2) as one:
        answer = b""
        try:
            one.sendall(raw)
            one.shutdown(socket.SHUT_WR)
            while piece := one.recv(65536):
                answer += piece
        except OSError:
            pass  # cut off, or left waiting: both are a server's right
    first = answer.split(b"\r\n", 1)[0]
    assert not answer or first.split(b" ")[1][:1] in (b"1", b"2", b"4"), first
