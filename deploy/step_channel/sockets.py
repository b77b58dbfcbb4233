"""Opening sockets for the step channel."""

from __future__ import annotations

import socket
from pathlib import Path

_BACKLOG = 64


def listen_unix(path: Path) -> socket.socket:
    """A listening Unix socket. Its folder must be the owner's alone: that is its first lock."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def listen_tcp(host: str) -> socket.socket:
    """A listening TCP socket on a port that the system picks."""
    listener = socket.create_server((host, 0), backlog=_BACKLOG)
    listener.setblocking(False)
    return listener


def connect(
    unix_path: Path | None, address: tuple[str, int] | None, timeout_s: float
) -> socket.socket:
    """The Unix socket if one is named, else TCP. Raises OSError."""
    if unix_path is not None:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.settimeout(timeout_s)
        try:
            peer.connect(str(unix_path))
        except OSError:
            peer.close()
            raise
        return peer
    if address is None:
        raise OSError("no address to connect to")
    peer = socket.create_connection(address, timeout_s)
    make_prompt(peer)
    return peer


def make_prompt(peer: socket.socket) -> None:
    """No waiting for fuller packets; a peer whose machine vanished is noticed in half a minute."""
    if peer.family == socket.AF_UNIX:
        return
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        number = getattr(socket, option, None)  # not on every system
        if number is not None:
            peer.setsockopt(socket.IPPROTO_TCP, number, value)
