"""Who is refused before the whole request has come sees why, and is not just cut off."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from local_app import LocalSource, local_app, served
from starlette.requests import Request
from starlette.types import Message
from test_keys import key

from deploy import linger
from deploy.keys import KeyRing
from deploy.linger import Exchange, Lingering

CHAT = "/v1/chat/completions"
MUCH = 16_000_000
"""Bytes that no socket's buffers hold: the client is still sending when it is refused."""


def first_line(url: str, path: str, size: int = MUCH) -> bytes:
    """Of the answer to a client that sends all first and, like Python's urllib, has the connection
    closed. Raises `ConnectionError`."""
    place = urlsplit(url)
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    with socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=30) as one:
        one.sendall(head.encode() + b"x" * size)
        answer = b""
        while piece := one.recv(65536):
            answer += piece
    return answer.partition(b"\r\n")[0]


@pytest.mark.parametrize(("path", "status"), [(CHAT, 413), ("/nothing", 404), ("/live", 405)])
def test_a_refusal_reaches_who_is_still_sending(base: str, path: str, status: int) -> None:
    assert first_line(base, path).startswith(f"HTTP/1.1 {status} ".encode())


def test_so_does_the_refusal_of_a_key(source: LocalSource) -> None:
    with served(local_app(source, KeyRing([key()]))) as url:
        assert first_line(url, CHAT).startswith(b"HTTP/1.1 401 ")


def test_control_without_lingering_the_client_is_cut_off(
    source: LocalSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linger, "LINGER_S", 0.0)
    with served(local_app(source)) as url, pytest.raises(ConnectionError):
        first_line(url, CHAT)


class Pieces:
    """A body in `left` pieces, then a client that waits; what is sent to it."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        self.left -= 1
        return {"type": "http.request", "body": b"x", "more_body": self.left > 0}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


async def answered(pieces: Pieces, lingering: Lingering, **headers: str) -> list[int]:
    """Pieces left unread: when the answer has been sent, and when it has ended."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "headers": raw}
    exchange = Exchange(Request(scope), pieces.receive, pieces.send)
    await exchange.send({"type": "http.response.start", "status": 401})
    await exchange.send({"type": "http.response.body", "body": b"why"})
    seen = [pieces.left]
    await exchange.end(lingering)
    bodies = [one for one in pieces.sent if one["type"] == "http.response.body"]
    assert b"".join(one["body"] for one in bodies) == b"why"
    assert [one.get("more_body", False) for one in bodies].count(False) == 1
    return [*seen, pieces.left]


@pytest.mark.parametrize(
    ("headers", "lingering", "left"),
    [
        ({"content_length": "3"}, Lingering(), 0),
        ({"transfer_encoding": "chunked"}, Lingering(), 0),
        ({}, Lingering(), 3),  # no body to wait for
        ({"content_length": "3", "expect": "100-continue"}, Lingering(), 3),
        ({"content_length": "3"}, Lingering(at_most=0), 3),  # too many linger already
    ],
)
async def test_the_rest_of_a_body_is_taken_once_the_answer_is_sent(
    headers: dict[str, str], lingering: Lingering, left: int
) -> None:
    for _ in range(70):  # each gives its place back
        assert await answered(Pieces(3), lingering, **headers) == [3, left]


async def test_nothing_is_held_back_once_the_body_is_read() -> None:
    pieces = Pieces(1)
    exchange = Exchange(
        Request({"type": "http", "headers": [(b"content-length", b"1")]}),
        pieces.receive,
        pieces.send,
    )
    await exchange.receive()
    last: Message = {"type": "http.response.body", "body": b"", "more_body": False}
    await exchange.send(last)
    await exchange.end(Lingering())
    assert pieces.sent == [last]
