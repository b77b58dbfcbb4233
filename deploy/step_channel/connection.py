"""One target's connection, as the drafter's server sees it."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Sequence

from deploy.step_channel.errors import ProtocolError
from deploy.step_channel.frames import MAX_FRAME_BYTES, Frame, client_frames, encode_frame
from deploy.step_channel.handshake import new_nonce, proof, proof_holds
from deploy.step_channel.messages import (
    PROTOCOL_VERSION,
    Answer,
    Challenge,
    ClientMessage,
    Refusal,
    ServerMessage,
    Welcome,
)
from smart_serve.drafters.protocol import DrafterInfo

HANDSHAKE_S = 5.0
"""From accepting to a good `Answer`."""
FRAME_S = 10.0
"""From the first byte of a frame to its last."""
TAKE_S = 10.0
"""A peer that takes nothing of an answer for so long is dropped. It need not wait for its answers:
it may be verifying meanwhile, and that may be a step with a long prompt in it."""


class Connection:
    """Owned by the server's thread. Holds the sequences that this target has open."""

    def __init__(self, peer: socket.socket, secret: bytes, info: DrafterInfo) -> None:
        self.peer = peer
        self.is_open = False
        """Whether the handshake is through."""
        self._secret = secret
        self._info = info
        self._reader = client_frames()
        self._outbox = bytearray()
        self._taken_at = 0.0
        """Clock of the last bytes that the peer took."""
        self._nonce = new_nonce()
        self._accepted_at = time.monotonic()
        self._names: dict[int, int] = {}  # the target's sequence id -> the drafter's

    def greet(self) -> None:
        self.send(Challenge(PROTOCOL_VERSION, self._nonce))

    def receive(self) -> Frame[ClientMessage] | None:
        """The next whole frame, or None if it is not here yet. Raises `ChannelError`, OSError."""
        while True:
            try:
                frame = self._reader.read(self.peer)
            except BlockingIOError:
                return None
            if frame is not None:
                return frame

    @property
    def owes(self) -> bool:
        """The peer has not taken all of its answers yet; it is not listened to before it has."""
        return bool(self._outbox)

    def send(self, message: ServerMessage, arrays: Sequence[memoryview] = ()) -> None:
        """What the peer does not take at once is kept for `flush`. Raises `ChannelError`,
        OSError."""
        self._taken_at = time.monotonic()
        for piece in encode_frame(message, arrays):
            self._outbox += piece
        self.flush()

    def flush(self) -> None:
        """Send what the peer takes now. Raises OSError."""
        try:
            while self._outbox:
                sent = self.peer.send(self._outbox)
                del self._outbox[:sent]
                self._taken_at = time.monotonic()
        except BlockingIOError:
            return

    def open(self, message: ClientMessage) -> None:
        """Checks the handshake's answer. Raises `ProtocolError` after saying why not."""
        if not isinstance(message, Answer):
            raise ProtocolError("a peer that has not proved itself wants something")
        if message.version != PROTOCOL_VERSION:
            self.send(Refusal(f"protocol version {PROTOCOL_VERSION} is spoken here"))
            raise ProtocolError(f"a peer of protocol version {message.version}")
        if not proof_holds(message.mac, self._secret, "client", self._nonce, message.nonce):
            self.send(Refusal("wrong secret"))
            raise ProtocolError("a peer without the secret")
        info = self._info
        mac = proof(self._secret, "server", self._nonce, message.nonce)
        self.send(
            Welcome(
                mac,
                info.kind,
                info.vectors,
                info.vector_size,
                info.capture_layers,
                info.layer_cost,
            )
        )
        self.is_open = True
        self._reader.limit_bytes = MAX_FRAME_BYTES

    def is_late(self, now: float) -> bool:
        """Whether the peer let a deadline pass: of the handshake, of a frame that it began, or of
        one that it is to take."""
        if not self.is_open:
            return now - self._accepted_at > HANDSHAKE_S
        if self.owes:
            return now - self._taken_at > TAKE_S
        return self._reader.begun_at is not None and now - self._reader.begun_at > FRAME_S

    def name(self, sequence_id: int, counter: itertools.count[int]) -> int:
        """The drafter's id of this target's sequence; new ones are numbered by `counter`."""
        if sequence_id not in self._names:
            self._names[sequence_id] = next(counter)
        return self._names[sequence_id]

    def forget(self, sequence_ids: tuple[int, ...] | None) -> list[int]:
        """The drafter's ids of these sequences (None: of all), which are no longer named."""
        chosen = tuple(self._names) if sequence_ids is None else sequence_ids
        return [self._names.pop(one) for one in chosen if one in self._names]
