"""Frames: four bytes of length, then one msgpack message."""

from __future__ import annotations

import socket
import struct
import time
from typing import Generic, TypeVar

import msgspec

from deploy.step_channel.errors import PeerClosedError, ProtocolError
from deploy.step_channel.messages import ClientMessage, ServerMessage

MAX_FRAME_BYTES = 256 * 2**20
"""A prompt of 16k tokens of an 8k-wide model in bfloat16, in one piece."""
MAX_HANDSHAKE_BYTES = 16 * 2**10
"""Of a peer that has not proved itself."""

_PREFIX = struct.Struct("<I")
_ENCODER = msgspec.msgpack.Encoder()

M = TypeVar("M", bound=ClientMessage | ServerMessage)


def encode_frame(message: ClientMessage | ServerMessage) -> bytearray:
    """The whole frame. Raises `ProtocolError` above `MAX_FRAME_BYTES`."""
    frame = bytearray(_PREFIX.size)
    _ENCODER.encode_into(message, frame, _PREFIX.size)
    body_bytes = len(frame) - _PREFIX.size
    if body_bytes > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {body_bytes} bytes is too large")
    _PREFIX.pack_into(frame, 0, body_bytes)
    return frame


class FrameReader(Generic[M]):
    """Collects one frame after the other from a socket, in whatever pieces they arrive."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M], limit_bytes: int) -> None:
        self._decoder = decoder
        self.limit_bytes = limit_bytes
        self._prefix = bytearray(_PREFIX.size)
        self._body: bytearray | None = None
        self._filled = 0
        self.begun_at: float | None = None
        """Clock (`time.monotonic`) of the unfinished frame's first byte."""

    def read(self, peer: socket.socket) -> M | None:
        """One `recv`; the message once its last byte is here, else None.

        Raises `PeerClosedError`, `ProtocolError` (oversized or unreadable), and what the socket
        raises.
        """
        target = self._prefix if self._body is None else self._body
        if self._filled < len(target):
            received = peer.recv_into(memoryview(target)[self._filled :])
            if received == 0:
                raise PeerClosedError("the peer closed the connection")
            self.begun_at = self.begun_at or time.monotonic()
            self._filled += received
        if self._filled < len(target):
            return None
        self._filled = 0
        if self._body is None:
            self._body = self._new_body()
            return None
        body, self._body, self.begun_at = self._body, None, None
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise ProtocolError(f"unreadable frame: {error}") from error

    def _new_body(self) -> bytearray:
        (body_bytes,) = _PREFIX.unpack(self._prefix)
        if body_bytes > self.limit_bytes:
            raise ProtocolError(f"a frame of {body_bytes} bytes where {self.limit_bytes} may come")
        return bytearray(body_bytes)


def client_frames() -> FrameReader[ClientMessage]:
    """What a server reads; it begins with the handshake's limit."""
    decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
    return FrameReader(decoder, MAX_HANDSHAKE_BYTES)


def server_frames() -> FrameReader[ServerMessage]:
    """What a client reads; it begins with the handshake's limit, which a `Welcome` must fit."""
    decoder: msgspec.msgpack.Decoder[ServerMessage] = msgspec.msgpack.Decoder(ServerMessage)
    return FrameReader(decoder, MAX_HANDSHAKE_BYTES)
