"""The target's end of the step channel: a `Drafter` that lives in another process."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.step_channel.convert import batch_to_message, message_to_proposal
from deploy.step_channel.errors import ChannelError, ProtocolError
from deploy.step_channel.frames import MAX_FRAME_BYTES, Frame, encode_frame, server_frames
from deploy.step_channel.handshake import check_secret, new_nonce, proof, proof_holds
from deploy.step_channel.messages import (
    PROTOCOL_VERSION,
    Answer,
    Challenge,
    ClientMessage,
    Close,
    Failed,
    Ping,
    Pong,
    Proposed,
    Refusal,
    ServerMessage,
    Welcome,
)
from deploy.step_channel.sockets import connect, send_all
from smart_serve.drafters.protocol import DraftBatch, DrafterInfo, DrafterUnavailable, Proposal

logger = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
PROPOSE_S = 2.0
"""A step that waits longer has lost more than any tree can give back. Long enough for the first
call on a cold drafter, which catches up with a whole prompt."""
_PINGS = 9
_WAITED = 0.05
"""Of the time since the question: who waited for more did not find the answer there."""
_WIRE_DECAY = 0.9
"""Weight of the past in the running mean of the wire's cost: about the last ten steps."""


class RemoteDrafter:
    """One connection. After the first failure it stays closed; its owner makes a new one.

    Called from one thread, as any `Drafter`.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        unix_path: Path | None = None,
        address: tuple[str, int] | None = None,
        propose_timeout_s: float = PROPOSE_S,
    ) -> None:
        """Connects, proves the secret both ways and measures the round trip.

        Raises `DrafterUnavailable`.
        """
        check_secret(secret)
        self._numbers = itertools.count()
        self._propose_timeout_s = propose_timeout_s
        self._reader = server_frames()
        self._unread: int | None = None
        """The question whose answer is still to be read."""
        self.is_connected = False
        try:
            self._peer = connect(unix_path, address, HANDSHAKE_S)
        except OSError as error:
            raise DrafterUnavailable(f"no connection to the drafter: {error}") from error
        self.is_connected = True
        try:
            self._info = self._shake_hands(secret)
            self._reader.limit_bytes = MAX_FRAME_BYTES
            self._wire_ms = statistics.median(self._ping_ms() for _ in range(_PINGS))
        except (ChannelError, OSError) as error:
            raise self._broken(error) from error

    @property
    def info(self) -> DrafterInfo:
        return self._info

    @property
    def wire_ms(self) -> float:
        """What a step pays beyond drafting: the bare round trip at first, then the running mean of
        (answer's wall clock - drafting), which also holds the wait behind other targets."""
        return self._wire_ms

    def propose(self, batch: DraftBatch) -> Proposal:
        """Raises `DrafterUnavailable` when no good answer comes within the deadline."""
        return self.ask(batch)()

    def ask(self, batch: DraftBatch) -> Callable[[], Proposal]:
        """Sends the question; what is returned waits for its answer. Both raise
        `DrafterUnavailable`. An answer that was not waited for by the next question is lost."""
        number = next(self._numbers)
        question, arrays = batch_to_message(number, batch, self._info)
        asked_at = time.monotonic()
        deadline = asked_at + self._propose_timeout_s
        try:
            if self._unread is not None:
                # Before it has been taken, the drafter listens to nothing else.
                self._read_answer(self._unread, deadline)
            self._send(question, deadline, arrays)
        except (ChannelError, OSError) as error:
            raise self._broken(error) from error
        self._unread = number
        return lambda: self._answer(number, len(batch.inputs), asked_at)

    def _answer(self, number: int, num_inputs: int, asked_at: float) -> Proposal:
        if self._unread != number:
            raise DrafterUnavailable("the answer was not waited for in time")
        # What its owner did since it asked is not the drafter's fault.
        begun = time.monotonic()
        try:
            answer = self._read_answer(number, begun + self._propose_timeout_s)
            if isinstance(answer, Failed):
                raise DrafterUnavailable(answer.reason)
            proposal = message_to_proposal(answer, num_inputs)
        except (ChannelError, OSError) as error:
            raise self._broken(error) from error
        now = time.monotonic()
        # An answer that was not waited for may have been there for long.
        if now - begun > _WAITED * (now - asked_at):
            elapsed_ms = (now - asked_at) * 1e3
            overhead_ms = max(0.0, elapsed_ms - sum(proposal.layer_ms))
            self._wire_ms += (1 - _WIRE_DECAY) * (overhead_ms - self._wire_ms)
        return proposal

    def _read_answer(self, number: int, deadline: float) -> Failed | Frame[Proposed]:
        answer, raw = self._receive(deadline)
        if not isinstance(answer, Failed | Proposed) or answer.number != number:
            raise ProtocolError("an answer to another question")
        self._unread = None
        return answer if isinstance(answer, Failed) else Frame(answer, raw)

    def close(self, sequence_ids: Sequence[int]) -> None:
        """Forget sequences. On a broken connection there is nothing to forget."""
        if not self.is_connected or not sequence_ids:
            return
        try:
            self._send(Close(tuple(sequence_ids)), time.monotonic() + self._propose_timeout_s)
        except (ChannelError, OSError) as error:
            logger.info("%s", self._broken(error))

    def disconnect(self) -> None:
        self.is_connected = False
        self._peer.close()

    def _shake_hands(self, secret: bytes) -> DrafterInfo:
        deadline = time.monotonic() + HANDSHAKE_S
        challenge, _ = self._receive(deadline)
        if not isinstance(challenge, Challenge):
            raise ProtocolError("the drafter does not begin with a challenge")
        if challenge.version != PROTOCOL_VERSION:
            raise ProtocolError(f"the drafter speaks protocol version {challenge.version}")
        nonce = new_nonce()
        mac = proof(secret, "client", challenge.nonce, nonce)
        self._send(Answer(PROTOCOL_VERSION, nonce, mac), deadline)
        welcome, _ = self._receive(deadline)
        if isinstance(welcome, Refusal):
            raise ProtocolError(f"the drafter refused: {welcome.reason}")
        if not isinstance(welcome, Welcome):
            raise ProtocolError("the drafter does not welcome")
        if not proof_holds(welcome.mac, secret, "server", challenge.nonce, nonce):
            raise ProtocolError("the drafter does not know the secret")
        return DrafterInfo(
            kind=welcome.kind,
            vectors=welcome.vectors,
            vector_size=welcome.vector_size,
            capture_layers=welcome.capture_layers,
            layer_cost=welcome.layer_cost,
        )

    def _ping_ms(self) -> float:
        begun = time.monotonic()
        deadline = begun + HANDSHAKE_S
        number = next(self._numbers)
        self._send(Ping(number), deadline)
        if self._receive(deadline).message != Pong(number):
            raise ProtocolError("a ping that was not answered")
        return (time.monotonic() - begun) * 1e3

    def _send(
        self, message: ClientMessage, deadline: float, arrays: Sequence[memoryview] = ()
    ) -> None:
        if not self.is_connected:
            raise ChannelError("the connection to the drafter is closed")
        self._peer.settimeout(_remaining(deadline))
        send_all(self._peer, encode_frame(message, arrays))

    def _receive(self, deadline: float) -> Frame[ServerMessage]:
        if not self.is_connected:
            raise ChannelError("the connection to the drafter is closed")
        while True:
            self._peer.settimeout(_remaining(deadline))
            frame = self._reader.read(self._peer)
            if frame is not None:
                return frame

    def _broken(self, error: Exception) -> DrafterUnavailable:
        # The answer may still be under way: this connection can never be trusted to be in step.
        self.disconnect()
        return DrafterUnavailable(f"the drafter's connection broke: {error}")


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("no answer in time")
    return remaining
