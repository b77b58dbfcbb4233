"""Opening sockets for the step channel."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

_BACKLOG = 64
FRAME_ROOM_BYTES = 4 * 2**20
"""Of a Unix socket, as far as the system allows: by default it holds some 200 KiB, and a step's
frame crosses it in pieces for which both ends wake each other."""


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
        make_prompt(peer)
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
    """Room for whole frames; no waiting for fuller packets; a peer whose machine vanished is
    noticed in half a minute."""
    if peer.family == socket.AF_UNIX:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, FRAME_ROOM_BYTES)
        return
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        number = getattr(socket, option, None)  # not on every system
        if number is not None:
            peer.setsockopt(socket.IPPROTO_TCP, number, value)


def send_all(peer: socket.socket, pieces: Sequence[bytearray | memoryview]) -> None:
    """One after the other, from where they are, within the socket's timeout for each part that the
    peer takes. Raises OSError."""
    left = [memoryview(one).cast("B") for one in pieces if len(one)]
    while left:
        sent = peer.sendmsg(left)
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if sent:
            left[0] = left[0][sent:]
