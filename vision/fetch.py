"""Pictures from https: addresses of hosts that the operator names; from nowhere else.

What a client writes must never make this server ask a machine for it that the client could not
reach itself. So: only listed hosts, only https, every resolved address public, a connection to
the very address that was checked (the name is not resolved again), the same for each redirect,
no proxies from the environment, and one deadline and one size limit for all of it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import quote, urljoin, urlsplit

import h11
import msgspec

from smart_serve.errors import ClientError

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) to addresses; raises `OSError` when there are none."""

TIMEOUT_S = 5.0
"""For one picture, redirects included; vLLM's default."""
MAX_REDIRECTS = 3
MAX_URL_CHARS = 2_048
MAX_AT_ONCE = 32
"""Pictures on their way to one ingress replica: with their size limit, a bound of its memory."""
_HEAD_BYTES = 16 * 1024
_PIECE_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
HOST_RULE = r"^(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?$"
"""`example.org`, `*.example.org` (any name below it), `example.org:8443`."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class _Place(msgspec.Struct, frozen=True):
    host: str
    port: int
    target: str
    """Path and query."""


class PictureFetcher:
    """Fetches for one ingress replica."""

    def __init__(
        self,
        domains: Sequence[str],
        *,
        timeout_s: float = TIMEOUT_S,
        resolve: Resolve | None = None,
        may_connect: Callable[[str], bool] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`domains`: each a `HOST_RULE`. The rest stands in for the system's resolver, `is_public`
        and the system's certificates."""
        self._rules = tuple(rule if ":" in rule else f"{rule}:443" for rule in domains)
        self._timeout_s = timeout_s
        self._resolve = resolve or _system_resolve
        self._may_connect = may_connect or is_public
        self._tls = tls or ssl.create_default_context()
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def fetch(self, url: str, max_bytes: int, param: str) -> bytes:
        """The body at `url`.

        Errors: ClientError `image_host_not_allowed`, `image_too_large`, `image_not_fetched`.
        """
        try:
            async with asyncio.timeout(self._timeout_s), self._slots:
                for _ in range(1 + MAX_REDIRECTS):
                    place = self._place(url, param)
                    body, location = await self._get(place, max_bytes, param)
                    if location is None:
                        return body
                    url = urljoin(url, location)
        except TimeoutError:
            raise _not_fetched(f"it took more than {self._timeout_s:g} s", param) from None
        except (OSError, h11.ProtocolError):
            raise _not_fetched("its host does not answer as it should", param) from None
        raise _not_fetched(f"more than {MAX_REDIRECTS} redirects", param)

    def _place(self, url: str, param: str) -> _Place:
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").rstrip(".").encode("idna").decode("ascii").lower()
            port = parts.port or 443
        except ValueError:
            raise _not_allowed(param) from None
        is_plain = parts.scheme == "https" and "@" not in parts.netloc
        if not is_plain or len(url) > MAX_URL_CHARS or not self._is_listed(host, port):
            raise _not_allowed(param)
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~?")
        return _Place(host, port, f"{path}?{query}" if query else path)

    def _is_listed(self, host: str, port: int) -> bool:
        """`*` stands for at least one label."""
        name = f"{host}:{port}"
        return any(
            name == rule or (rule.startswith("*.") and name.endswith(rule[1:]))
            for rule in self._rules
        )

    async def _get(self, place: _Place, max_bytes: int, param: str) -> tuple[bytes, str | None]:
        """The body, or where to look instead."""
        addresses = await self._resolve(place.host, place.port)
        if not addresses or not all(map(self._may_connect, addresses)):
            raise _not_allowed(param)
        reader, writer = await asyncio.open_connection(
            addresses[0], place.port, ssl=self._tls, server_hostname=place.host
        )
        try:
            http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
            writer.write(http.send(_request(place)) or b"")
            http.send(h11.EndOfMessage())
            return await _read(http, reader, max_bytes, param)
        finally:
            # Not an orderly goodbye, which a slow host could draw out.
            writer.transport.abort()


async def _read(
    http: h11.Connection, reader: asyncio.StreamReader, max_bytes: int, param: str
) -> tuple[bytes, str | None]:
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_PIECE_BYTES))
        elif isinstance(event, h11.Response):
            if event.status_code in _REDIRECTS:
                return b"", dict(event.headers).get(b"location", b"").decode("latin-1")
            if event.status_code != 200:
                raise _not_fetched(f"its host answers with {event.status_code}", param)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_bytes:
                message = f"the picture is too large; the limit is {max_bytes} bytes"
                raise ClientError(message, code="image_too_large", param=param)
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body), None


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet, also inside an IPv6 wrapping of IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def _system_resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _request(place: _Place) -> h11.Request:
    host = place.host if place.port == 443 else f"{place.host}:{place.port}"
    headers = [
        *(("Host", host), ("Accept", "image/*"), ("Accept-Encoding", "identity")),
        *(("User-Agent", "smart-serve"), ("Connection", "close")),
    ]
    return h11.Request(method="GET", target=place.target, headers=headers)


def _not_allowed(param: str) -> ClientError:
    message = "pictures are not fetched from this address; send a data: URL"
    return ClientError(message, code="image_host_not_allowed", param=param)


def _not_fetched(why: str, param: str) -> ClientError:
    return ClientError(
        f"the picture cannot be fetched: {why}", code="image_not_fetched", param=param
    )
