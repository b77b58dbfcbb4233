"""Bytes that are not quite HTTP, or not quite JSON: never a 5xx, and the server goes on."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_app import ARGS

MODEL = ARGS.served_name
HOST = b"Host: a\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
GET = b"GET /live HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GOOD = json.dumps(
    {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
).encode()
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n"
HTTP2_SETTINGS = b"\x04"
"""The type of a frame, which follows its length of three bytes."""
STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) [^\r\n]*\r\n")
ANSWER_S = 2.0
"""How long an answer is waited for; a server may also wait for the rest of what it was promised."""

Open = Callable[[], socket.socket]


def post(body: bytes, head: bytes = POST) -> bytes:
    return head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
def connect(base: str) -> Iterator[Open]:
    place = urlsplit(base)
    with ExitStack() as opened:

        def one() -> socket.socket:
            address = (str(place.hostname), int(place.port or 0))
            return opened.enter_context(socket.create_connection(address, timeout=ANSWER_S))

        yield one
    answer = httpx.post(f"{base}/v1/chat/completions", content=GOOD, timeout=60)
    assert answer.status_code == 200  # it goes on


def answer_to(one: socket.socket, raw: bytes, ends: bool = True) -> bytes:
    """What comes back until the server closes, or nothing comes for a while."""
    answer = b""
    try:
        one.sendall(raw)
        if ends:
            one.shutdown(socket.SHUT_WR)
        while piece := one.recv(65536):
            answer += piece
    except OSError:
        pass  # cut off, or left waiting: both are a server's right
    return answer


def check(answer: bytes) -> list[int]:
    """The statuses in it: none of them says that the server failed."""
    assert not answer or STATUS_LINE.match(answer), answer[:80]
    statuses = [int(status) for status in STATUS_LINE.findall(answer)]
    assert all(status < 500 for status in statuses), answer[:200]
    return statuses


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00" * 5000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /live\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"get /live HTTP/9.9\r\n" + HOST + b"\r\n",
        b"GET http://a/live HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /%ff%00%0d%0a HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /v1/models/%c0%ae%c0%ae%2f HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /live?" + b"a=%00&" * 10_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        GET[:20],
        GET + b"\r\n" * 1 + GET + b"\r\n",
        (GET + b"\r\n") * 50,
        GET + b"X: a\r\n" * 100_000 + b"\r\n",
        GET + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
        GET + b"X\r\n\r\n",
        GET + b": a\r\n\r\n",
        GET + b"X: \xff\xfe\x00\r\n\r\n",
        GET + b"X: a\n Y: b\r\n\r\n",
        GET + b"Authorization: Bearer \xf0\x9f\x98\x80\r\n\r\n",
        GET + b"X-Request-Id: " + b"\xe9" * 300 + b"\r\n\r\n",
        GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        *(
            method + b" /v1/chat/completions HTTP/1.1\r\n" + HOST + b"\r\n"
            for method in (b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS", b"TRACE", b"FROB")
        ),
        b"CONNECT a:80 HTTP/1.1\r\n" + HOST + b"\r\n",
        POST + b"Content-Length: -1\r\n\r\n{}",
        POST + b"Content-Length: 99999999999999999999\r\n\r\n{}",
        POST + b"Content-Length: abc\r\n\r\n{}",
        POST + b"Content-Length: \xb2\r\n\r\n{}",
        POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        POST + b"Content-Length: 100\r\n\r\n{}",
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"ffffffffffffffff\r\n{}",
        CHUNKED + b"2\r\n{}\r\n",
        CHUNKED + b"2\r\n{}\r\n0\r\nX: y\r\n\r\n",
        CHUNKED + b"2;" + b"a" * 70_000 + b"\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"1\r\n{\r\n" * 5_000 + b"0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip\r\n\r\n{}",
        POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
        POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
        POST + b"\r\n" + b"{}" * 1000,
        post(GOOD)[:-1],
        post(GOOD) + post(GOOD)[:-9],
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_bytes_that_are_not_quite_http(connect: Open, raw: bytes) -> None:
    answer = answer_to(connect(), raw)
    if raw.startswith(HTTP2_PREFACE) and answer[3:4] == HTTP2_SETTINGS:
        return  # It is HTTP/2 to HAProxy, which speaks it.
    check(answer)


DEEP = 100_000
MESSAGES = b'{"model":"%s","max_tokens":2,"messages":' % MODEL.encode()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"null", 400),
        (b"[]", 400),
        (b"\xef\xbb\xbf" + GOOD, 400),
        (GOOD.decode().encode("utf-16"), 400),
        (GOOD + b"{}", 400),
        (GOOD + b"\x00", 400),
        (GOOD.replace(b"Hi", b"\xff\xfe"), 400),
        (GOOD.replace(b"Hi", b"\xc0\xaf"), 400),
        (GOOD.replace(b"Hi", b"\\ud800"), 400),
        (GOOD.replace(b"Hi", b"\\u0000 \\uffff"), 200),
        (GOOD.replace(b"2}", b"NaN}"), 400),
        (GOOD.replace(b"2}", b'2, "temperature": 1e999}'), 400),
        (GOOD.replace(b"2}", b'2, "temperature": -0.0}'), 200),
        (GOOD.replace(b"2}", b"9" * 5_000 + b"}"), 400),
        (GOOD.replace(b"2}", b'2, "seed": ' + b"9" * 400 + b"}"), 400),
        (GOOD.replace(b"2}", b'2, "max_tokens": 1, "max_tokens": 3}'), 200),
        (GOOD.replace(b"2}", b'2, "n": 99, "n": 1}'), 200),
        (GOOD.replace(b"2}", b'2, "n": 1, "n": 99}'), 400),
        (b"[" * DEEP, 400),
        (MESSAGES + b"[" * DEEP + b"]" * DEEP + b"}", 400),
        (MESSAGES + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}", 400),
        (GOOD.replace(b"2}", b'2, "response_format": {"type": "x", "y": ' + b"[" * DEEP), 400),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else str(value),
)
def test_bytes_that_are_not_quite_json(connect: Open, body: bytes, status: int) -> None:
    # Duplicate keys: the last one counts, as in Python and in browsers.
    assert check(answer_to(connect(), post(body), ends=False)[:200]) == [status]


def test_mutated_requests(connect: Open) -> None:
    whole = post(GOOD, POST + b"Content-Type: application/json\r\n")
    seen: set[int] = set()

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,  # so that the control below cannot fail by bad luck
        suppress_health_check=list(HealthCheck),
    )
    @given(
        changes=st.lists(
            st.tuples(
                st.integers(0, len(whole) - 1),
                st.integers(0, 3),
                st.sampled_from([b"", b"\r\n", b"\n", b"\x00", b"\xff", b"0", b":", b" ", b'"']),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def run(changes: list[tuple[int, int, bytes]]) -> None:
        raw = whole
        for at, removed, put in changes:
            raw = raw[:at] + put + raw[at + removed :]
        with connect() as one:
            one.settimeout(0.3)  # most of what is not answered waits for a longer body
            seen.update(check(answer_to(one, raw, ends=False)))

    run()
    assert {200, 400} <= seen  # control: some mutations do harm, others do not


def test_many_that_never_finish_their_request(connect: Open, base: str) -> None:
    slow = [connect() for _ in range(100)]
    for i, one in enumerate(slow):
        one.sendall((GET[:25], POST + b"Content-Length: 9\r\n\r\n{", CHUNKED + b"9\r\n{")[i % 3])
    begun_s = time.monotonic()
    for _ in range(5):
        assert httpx.get(f"{base}/live", timeout=10).status_code == 200
    assert httpx.post(f"{base}/v1/chat/completions", content=GOOD, timeout=60).status_code == 200
    assert time.monotonic() - begun_s < 60  # of waiting for the slow ones there is none
