"""The HTTP API over a real engine, in one process."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from local_app import LocalSource, local_app, served
from served_app import wait_for

from deploy.routes import ROUTES, Route
from smart_serve.bundled import EXAMPLE_PICTURE
from smart_serve.client import chat_body, delta_text, stream_chat
from smart_serve.errors import ServerError
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
    assert document["openapi"].startswith("3.2")

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


@pytest.mark.parametrize("route", [one for one in ROUTES if one.request], ids=lambda one: one.path)
def test_the_documents_examples_are_answered(route: Route, url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    operation = document["paths"][route.path][route.method.lower()]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    response = httpx.post(url + route.path, json={**example, "model": MODEL}, timeout=60)
    assert response.status_code == 200, response.text


def test_a_full_server_answers_before_it_reads_the_body(source: LocalSource) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1900000\r\n\r\n"

    def status(url: str, head: bytes = head, wait_s: float = 1) -> bytes:
        """Of the answer to a header whose body never comes; b"" while it is waited for."""
        place = httpx.URL(url)
        with socket.create_connection((place.host, place.port), timeout=wait_s) as one:
            one.sendall(head)
            try:
                answer = one.recv(65536)
            except TimeoutError:
                return b""
            assert b"retry-after: 1\r\n" in answer
            assert b'"overloaded"' in answer
            return answer.split(b" ")[1]

    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 900, "ignore_eos": True}
    with served(local_app(source, max_requests=1)) as url, httpx.Client(timeout=30) as client:
        assert status(url) == b""  # control: with room, the body is waited for
        wait_for(lambda: status(url) == b"")
        target = f"{url}/v1/chat/completions"
        with client.stream("POST", target, json={**body, "stream": True}) as response:
            lines = response.iter_lines()  # kept: the stream ends with it
            next(lines)
            assert status(url, wait_s=30) == b"429"
            assert httpx.get(f"{url}/live").status_code == 200  # nothing that takes no body waits
        wait_for(lambda: status(url) == b"")
    with served(local_app(source, max_held_bytes=3_000_000)) as url:
        place = httpx.URL(url)
        with socket.create_connection((place.host, place.port)) as one:
            one.sendall(head)
            wait_for(lambda: status(url) == b"429")
            # Without a length it may become as large as any.
            chunked = head.replace(b"Content-Length: 1900000", b"Transfer-Encoding: chunked")
            assert status(url, chunked, wait_s=30) == b"429"
            small = {"model": MODEL, "prompt": "a"}
            assert httpx.post(f"{url}/tokenize", json=small).status_code == 200
        wait_for(lambda: status(url) == b"")
    wait_for(source.is_idle)


def test_full_queues_are_known_at_the_door(source: LocalSource) -> None:
    class Full(LocalSource):
        def __init__(self) -> None:
            self.__dict__.update(source.__dict__)

        def is_full(self) -> bool:
            return True

    with served(local_app(Full())) as url:
        refused = httpx.post(f"{url}/tokenize", json={"model": MODEL, "prompt": "a"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")


def test_the_projects_own_client_reads_a_stream(url: str) -> None:
    body = chat_body(MODEL, "Describe the picture.", [PICTURE], temperature=0, max_tokens=12)
    *news, last = stream_chat(url, body)
    whole = httpx.post(f"{url}/v1/chat/completions", json=body).json()
    text = "".join(map(delta_text, news))
    assert text == whole["choices"][0]["message"]["content"]
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    with pytest.raises(ServerError, match="temperature"):
        list(stream_chat(url, {**body, "temperature": 9}))
