"""Frames: two lengths, one msgpack message, and its arrays as they are in memory.

bytes of the message, bytes of the arrays (4 each) | message | up to 8 aligned | arrays
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy.step_channel.errors import PeerClosedError, ProtocolError
from deploy.step_channel.messages import ClientMessage, ServerMessage

MAX_FRAME_BYTES = 256 * 2**20
"""A prompt of 16k tokens of an 8k-wide model in bfloat16, in one piece."""
MAX_HANDSHAKE_BYTES = 16 * 2**10
"""Of a peer that has not proved itself."""

_PREFIX = struct.Struct("<II")
_ALIGNMENT = 8
_ENCODER = msgspec.msgpack.Encoder()

M = TypeVar("M", bound=ClientMessage | ServerMessage)
Buffer = bytearray | memoryview


class Frame(NamedTuple, Generic[M]):
    message: M
    raw: NDArray[np.uint8]
    """Its arrays; see `RawReader`."""


def encode_frame(
    message: ClientMessage | ServerMessage, arrays: Sequence[memoryview] = ()
) -> list[Buffer]:
    """The whole frame, in the pieces to send one after the other: the arrays are not copied.

    Raises `ProtocolError` above `MAX_FRAME_BYTES`.
    """
    head = bytearray(_PREFIX.size)
    _ENCODER.encode_into(message, head, _PREFIX.size)
    message_bytes, raw_bytes = len(head) - _PREFIX.size, sum(one.nbytes for one in arrays)
    if message_bytes + raw_bytes > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {message_bytes + raw_bytes} bytes is too large")
    _PREFIX.pack_into(head, 0, message_bytes, raw_bytes)
    head.extend(bytes(-message_bytes % _ALIGNMENT))
    return [head, *arrays]


class FrameReader(Generic[M]):
    """Collects one frame after the other from a socket, in whatever pieces they arrive."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M], limit_bytes: int) -> None:
        self._decoder = decoder
        self.limit_bytes = limit_bytes
        self._prefix = memoryview(bytearray(_PREFIX.size))
        self._rest: NDArray[np.uint8] | None = None
        """All behind the prefix; in memory of its own, for the arrays go on living in it."""
        self._target = self._prefix
        """What is to be filled next."""
        self.begun_at: float | None = None
        """Clock (`time.monotonic`) of the unfinished frame's first byte."""

    def read(self, peer: socket.socket) -> Frame[M] | None:
        """One `recv`; the frame once its last byte is here, else None.

        Raises `PeerClosedError`, `ProtocolError` (oversized or unreadable), and what the socket
        raises.
        """
        if self._target:
            received = peer.recv_into(self._target)
            if received == 0:
                raise PeerClosedError("the peer closed the connection")
            self.begun_at = self.begun_at or time.monotonic()
            self._target = self._target[received:]
        if self._target:
            return None
        if self._rest is None:
            self._rest = self._new_rest()
            self._target = self._rest.data
            return None
        rest, self._rest, self._target, self.begun_at = self._rest, None, self._prefix, None
        return self._frame(rest)

    def _new_rest(self) -> NDArray[np.uint8]:
        message_bytes, raw_bytes = _PREFIX.unpack(self._prefix)
        if message_bytes + raw_bytes > self.limit_bytes:
            raise ProtocolError(
                f"a frame of {message_bytes + raw_bytes} bytes where {self.limit_bytes} may come"
            )
        return np.empty(message_bytes + -message_bytes % _ALIGNMENT + raw_bytes, np.uint8)

    def _frame(self, rest: NDArray[np.uint8]) -> Frame[M]:
        message_bytes, raw_bytes = _PREFIX.unpack(self._prefix)
        try:
            message = self._decoder.decode(rest.data[:message_bytes])
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise ProtocolError(f"unreadable frame: {error}") from error
        return Frame(message, rest[len(rest) - raw_bytes :])


def client_frames() -> FrameReader[ClientMessage]:
    """What a server reads; it begins with the handshake's limit."""
    decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
    return FrameReader(decoder, MAX_HANDSHAKE_BYTES)


def server_frames() -> FrameReader[ServerMessage]:
    """What a client reads; it begins with the handshake's limit, which a `Welcome` must fit."""
    decoder: msgspec.msgpack.Decoder[ServerMessage] = msgspec.msgpack.Decoder(ServerMessage)
    return FrameReader(decoder, MAX_HANDSHAKE_BYTES)
