"""The drafter's end of the step channel: one thread, one drafter, several targets."""

from __future__ import annotations

import itertools
import logging
import selectors
import socket
import threading
import time
from pathlib import Path

from deploy.step_channel.connection import Connection
from deploy.step_channel.convert import message_to_batch, proposal_to_message
from deploy.step_channel.errors import ChannelError, ProtocolError
from deploy.step_channel.frames import Frame
from deploy.step_channel.handshake import check_secret
from deploy.step_channel.messages import (
    ClientMessage,
    Close,
    Failed,
    Ping,
    Pong,
    Propose,
    Proposed,
)
from deploy.step_channel.questions import DraftTotals, Question
from deploy.step_channel.sockets import listen_tcp, listen_unix, make_prompt
from deploy.step_channel.spans import DraftSpans
from smart_serve.drafters.protocol import DrafterUnavailable, Outcome, SharedDrafter

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 256


class DrafterServer:
    """Serves `drafter` until `stop`.

    One thread does everything, so the drafter has its one owner and a step crosses no queue. What
    several targets have asked by the time the drafter is free is drafted together.
    """

    def __init__(
        self,
        drafter: SharedDrafter,
        secret: bytes,
        *,
        unix_path: Path | None = None,
        tcp_host: str | None = None,
    ) -> None:
        """Binds at once: `unix_path` must be free, on `tcp_host` the system picks the port."""
        check_secret(secret)
        self._drafter = drafter
        self._secret = secret
        self._info = drafter.info
        self._unix_path = unix_path
        self._connections: dict[socket.socket, Connection] = {}
        self._ids = itertools.count()
        self._spans = DraftSpans()
        self._asked: list[tuple[Connection, Frame[Propose]]] = []
        """One question of a connection at most: its next message is read once this is answered."""
        self.totals = DraftTotals()
        self._selector = selectors.DefaultSelector()
        self._listeners = []
        self.tcp_port: int | None = None
        if unix_path is not None:
            self._listeners.append(listen_unix(unix_path))
        if tcp_host is not None:
            listener = listen_tcp(tcp_host)
            self.tcp_port = listener.getsockname()[1]
            self._listeners.append(listener)
        self._waker, self._woken = socket.socketpair()
        for one in (*self._listeners, self._woken):
            self._selector.register(one, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="drafter-server", daemon=True)

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Closes every connection and its sequences; returns once the thread has ended."""
        self._waker.close()
        self._thread.join(timeout_s)
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            for key, _ in self._selector.select(timeout=1.0):
                stopping = stopping or key.fileobj is self._woken
                if key.fileobj in self._listeners:
                    self._accept(key.fileobj)
                elif isinstance(key.data, Connection):
                    self._attend(key.data)
            self._answer_all()
            self._drop_late()
        for connection in list(self._connections.values()):
            self._drop(connection)
        for one in self._listeners:
            one.close()
        self._woken.close()
        self._selector.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            peer, _ = listener.accept()
        except OSError as error:  # it hung up before it was accepted
            logger.info("no connection accepted: %s", error)
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            logger.warning("a target was turned away: %d are connected", MAX_CONNECTIONS)
            peer.close()
            return
        make_prompt(peer)
        peer.setblocking(False)
        connection = Connection(peer, self._secret, self._info)
        self._connections[peer] = connection
        self._selector.register(peer, selectors.EVENT_READ, connection)
        try:
            connection.greet()
        except OSError as error:
            self._drop(connection, error)

    def _attend(self, connection: Connection) -> None:
        """Serves what this target sent; whatever is wrong with it costs only its connection."""
        try:
            if connection.owes:
                connection.flush()
            elif (frame := connection.receive()) is not None:
                if connection.is_open:
                    self._serve(connection, frame)
                else:
                    connection.open(frame.message)
        except (ChannelError, OSError) as error:
            self._drop(connection, error)
            return
        self._listen(connection)

    def _listen(self, connection: Connection) -> None:
        """To what the target says next; or, first, for when it takes more of its answers."""
        wanted = selectors.EVENT_WRITE if connection.owes else selectors.EVENT_READ
        if self._selector.get_key(connection.peer).events != wanted:
            self._selector.modify(connection.peer, wanted, connection)

    def _serve(self, connection: Connection, frame: Frame[ClientMessage]) -> None:
        match frame.message:
            case Propose() as question:
                self._asked.append((connection, Frame(question, frame.raw)))
            case Ping(number):
                connection.send(Pong(number))
            case Close(sequence_ids):
                self._close(connection.forget(sequence_ids))
            case _:
                raise ProtocolError("an unexpected message")

    def _answer_all(self) -> None:
        """Drafts for all targets that have asked, and tells each as soon as its trees are grown."""
        asked, self._asked = self._asked, []
        questions = [one for one in map(self._question, asked) if one is not None]
        if not questions:
            return
        batches = [question.batch for question in questions]
        for batch in batches:
            self._spans.open(batch)
        self.totals.add(batches)
        waiting = dict(enumerate(questions))
        try:
            for number, outcome in self._drafter.propose_together(batches):
                self._answer(waiting[number], outcome)
                del waiting[number]
        except Exception:
            # The targets must not lose their drafter to one bad batch.
            logger.exception("the drafter failed on a batch, one of %d at once", len(batches))
        for question in waiting.values():
            self._answer(question, DrafterUnavailable("the drafter failed"))

    def _question(self, asked: tuple[Connection, Frame[Propose]]) -> Question | None:
        connection, frame = asked
        try:
            batch = message_to_batch(frame, self._info, lambda one: connection.name(one, self._ids))
        except ChannelError as error:
            self._drop(connection, error)
            return None
        return Question(connection, frame.message.number, batch)

    def _answer(self, question: Question, outcome: Outcome) -> None:
        message: Failed | Proposed
        arrays: list[memoryview] = []
        if isinstance(outcome, DrafterUnavailable):
            message = Failed(question.number, outcome.message)
        else:
            self._spans.add(question.batch, outcome)
            message, arrays = proposal_to_message(question.number, outcome)
        try:
            question.connection.send(message, arrays)
        except (ChannelError, OSError) as error:
            self._drop(question.connection, error)
        else:
            self._listen(question.connection)

    def _drop_late(self) -> None:
        now = time.monotonic()
        for connection in [one for one in self._connections.values() if one.is_late(now)]:
            self._drop(connection, ProtocolError("a deadline passed"))

    def _drop(self, connection: Connection, reason: Exception | None = None) -> None:
        if reason is not None:
            logger.info("a target's connection ends: %s", reason)
        self._selector.unregister(connection.peer)
        del self._connections[connection.peer]
        connection.peer.close()
        self._close(connection.forget(None))

    def _close(self, sequence_ids: list[int]) -> None:
        self._drafter.close(sequence_ids)
        self._spans.close(sequence_ids)
