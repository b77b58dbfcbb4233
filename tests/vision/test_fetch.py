"""Pictures come from listed, public hosts alone; here, names and servers are local ones."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from smart_serve.errors import ClientError
from tests.vision.tls_hosts import Answer, Authority, body, host
from vision.fetch import PictureFetcher, is_public

DATA = b"picture bytes"
LIMIT = 10_000


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


class Resolver:
    """Answers in turn; the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.asked: list[str] = []

    async def __call__(self, name: str, port: int) -> Sequence[str]:
        self.asked.append(name)
        return next(self._answers)


def fetcher(authority: Authority, *domains: str, **options: Any) -> PictureFetcher:
    options.setdefault("resolve", Resolver(["127.0.0.1"]))
    options.setdefault("may_connect", lambda address: address == "127.0.0.1")
    return PictureFetcher(domains, tls=authority.client, **options)


def always(response: bytes) -> Answer:
    async def answer(path: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(response)

    return answer


async def code_of(one: PictureFetcher, url: str) -> str:
    with pytest.raises(ClientError) as caught:
        await one.fetch(url, LIMIT, "here")
    assert (caught.value.status, caught.value.param) == (400, "here")
    return caught.value.code


async def test_a_listed_host_is_asked_for_exactly_the_path(authority: Authority) -> None:
    async with host(authority, always(body(DATA))) as one:
        for rule in (f"pictures.test:{one.port}", f"*.test:{one.port}"):
            url = f"https://Pictures.TEST.:{one.port}/a b/ü.png?x=1&y=%20"
            assert await fetcher(authority, rule).fetch(url, LIMIT, "here") == DATA
        assert one.requests[0].startswith(b"GET /a%20b/%C3%BC.png?x=1&y=%20 HTTP/1.1\r\n")
        assert f"host: pictures.test:{one.port}".encode() in one.requests[0].lower()


async def test_chunked_bodies_are_read(authority: Authority) -> None:
    chunked = CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with host(authority, always(chunked)) as one:
        rule = f"pictures.test:{one.port}"
        assert await fetcher(authority, rule).fetch(f"https://{rule}/", LIMIT, "here") == b"abcde"


@pytest.mark.parametrize(
    "url",
    [
        "https://other.test:{port}/",
        "https://pictures.test.evil.test:{port}/",
        "https://evilpictures.test:{port}/",
        "https://.pictures.test:{port}/",
        "https://pictures.test/",
        "https://pictures.test:1/",
        "https://pictures.test:99999/",
        "http://pictures.test:{port}/",
        "https://user@pictures.test:{port}/",
        "https://pictures.test:{port}@other.test/",
        "https://other.test\\@pictures.test:{port}/",
        "https://127.0.0.1:{port}/",
        "https://2130706433:{port}/",
        "https://[::1]:{port}/",
        "https://[::ffff:127.0.0.1]:{port}/",
        "https://[/",
        "https:///",
        "https://pictures.test:{port}/" + "a" * 3000,
    ],
)
async def test_every_other_address_is_refused_without_a_connection(
    authority: Authority, url: str
) -> None:
    async with host(authority, always(body(DATA))) as one:
        resolver = Resolver(["127.0.0.1"])
        rules = (f"pictures.test:{one.port}", f"*.pictures.test:{one.port}")
        fetch = fetcher(authority, *rules, resolve=resolver)
        assert await code_of(fetch, url.format(port=one.port)) == "image_host_not_allowed"
        assert (one.connections, resolver.asked) == (0, [])


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"], []],
)
async def test_a_listed_name_must_lead_to_the_open_internet(
    authority: Authority, addresses: list[str]
) -> None:
    async with host(authority, always(body(DATA))) as one:
        rule = f"pictures.test:{one.port}"
        fetch = fetcher(authority, rule, resolve=Resolver(addresses), may_connect=is_public)
        assert await code_of(fetch, f"https://{rule}/") == "image_host_not_allowed"
        assert one.connections == 0


async def test_the_checked_address_is_the_one_that_is_used(authority: Authority) -> None:
    """A name whose second answer is another address (DNS rebinding) gains nothing by it."""
    async with (
        host(authority, always(body(DATA))) as good,
        host(authority, always(body(b"secret")), "127.0.0.2", good.port) as inner,
    ):
        rule = f"pictures.test:{good.port}"
        resolver = Resolver(["127.0.0.1"], ["127.0.0.2"])
        fetch = fetcher(authority, rule, resolve=resolver)
        assert await fetch.fetch(f"https://{rule}/", LIMIT, "here") == DATA
        assert len(resolver.asked) == 1
        # Control: the second answer is there, and is refused when it is the one to be used.
        assert await code_of(fetch, f"https://{rule}/") == "image_host_not_allowed"
        assert (good.connections, inner.connections) == (1, 0)


async def test_redirects_are_checked_like_the_first_address(authority: Authority) -> None:
    async def answer(path: bytes, writer: asyncio.StreamWriter) -> None:
        where = {
            b"/near": "/end",
            b"/off": f"https://other.test:{one.port}/end",
            b"/plain": f"http://pictures.test:{one.port}/end",
            b"/inner": f"https://cdn.pictures.test:{one.port}/end",
            b"/loop": "/loop",
            b"/file": "file:///etc/passwd",
        }.get(path)
        writer.write(
            body(DATA) if where is None else body(b"", f"Location: {where}", status="302 Found")
        )

    async with host(authority, answer) as one:
        rules = (f"pictures.test:{one.port}", f"cdn.pictures.test:{one.port}")
        start = f"https://{rules[0]}"
        assert await fetcher(authority, *rules).fetch(f"{start}/near", LIMIT, "here") == DATA
        resolver = Resolver(["127.0.0.1"], ["10.0.0.1"])
        inner = fetcher(authority, *rules, resolve=resolver)
        assert await code_of(inner, f"{start}/inner") == "image_host_not_allowed"
        seen = one.connections
        for path in ("/off", "/plain", "/file"):
            fetch = fetcher(authority, *rules)
            assert await code_of(fetch, start + path) == "image_host_not_allowed"
            seen += 1
            assert one.connections == seen
        assert await code_of(fetcher(authority, *rules), f"{start}/loop") == "image_not_fetched"
        assert one.connections == seen + 4


def drip(first: bytes, piece: bytes) -> Answer:
    async def answer(path: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        for _ in range(100_000):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    return answer


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (drip(HEAD, b"x"), "image_not_fetched"),
        (drip(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"), "image_not_fetched"),
        (drip(HEAD, b"x" * 5000), "image_too_large"),
        (drip(CHUNKED, b"1388\r\n" + b"x" * 5000 + b"\r\n"), "image_too_large"),
        (always(body(DATA, status="404 Not Found")), "image_not_fetched"),
        (always(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort"), "image_not_fetched"),
        (always(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 10_000), "image_not_fetched"),
        (always(b"nonsense\r\n\r\n"), "image_not_fetched"),
        (always(b""), "image_not_fetched"),
        (always(body(b"x" * (LIMIT + 1))), "image_too_large"),
    ],
)
async def test_hosts_that_misbehave(authority: Authority, answer: Answer, code: str) -> None:
    async with host(authority, answer) as one:
        rule = f"pictures.test:{one.port}"
        assert await code_of(fetcher(authority, rule, timeout_s=0.5), f"https://{rule}/") == code
        assert one.connections == 1


async def test_a_wrong_certificate_is_refused(authority: Authority) -> None:
    async with host(authority, always(body(DATA))) as one:
        rule = f"stranger.test:{one.port}"
        assert await code_of(fetcher(authority, rule), f"https://{rule}/") == "image_not_fetched"
        assert one.requests == []


async def test_a_host_that_does_not_listen(authority: Authority) -> None:
    async with host(authority, always(b"")) as one:
        pass
    rule = f"pictures.test:{one.port}"
    assert await code_of(fetcher(authority, rule), f"https://{rule}/") == "image_not_fetched"


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)


async def test_no_proxy_of_the_environment_is_used(authority: Authority, proxied: None) -> None:
    async with host(authority, always(body(DATA))) as one:
        rule = f"pictures.test:{one.port}"
        assert await fetcher(authority, rule).fetch(f"https://{rule}/", LIMIT, "here") == DATA


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::7f00:1"),
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
