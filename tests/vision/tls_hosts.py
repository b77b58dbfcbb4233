"""Hosts on the loopback interface that speak https, count who comes, and may behave badly."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAMES = ("pictures.test", "cdn.pictures.test", "other.test")
Answer = Callable[[bytes, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Authority:
    """One self-signed certificate for all names of the tests."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(one) for one in NAMES]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        file = folder / "host.pem"
        pem = serialization.Encoding.PEM
        plain = serialization.NoEncryption()
        file.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
            + certificate.public_bytes(pem)
        )
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(file)
        self.client = ssl.create_default_context(cafile=str(file))


class Host:
    """What one server has seen."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0
        self.requests: list[bytes] = []


@asynccontextmanager
async def host(
    authority: Authority, answer: Answer, address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Host]:
    """A server whose `answer` gets the path and writes what it likes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            seen.requests.append(head)
            await answer(head.split(b" ")[1], writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other side left, which is what some tests are about
        finally:
            writer.close()

    server = await asyncio.start_server(serve, address, port, ssl=authority.server)
    seen = Host(server.sockets[0].getsockname()[1])
    async with server:
        yield seen
        server.close()


def body(data: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(data)}", "", ""]
    return "\r\n".join(lines).encode() + data
