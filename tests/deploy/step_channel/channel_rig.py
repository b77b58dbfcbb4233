"""What the tests of the step channel share: a secret, batches, and a peer without manners."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from deploy.step_channel.frames import encode_frame, server_frames
from deploy.step_channel.handshake import new_nonce, proof
from deploy.step_channel.messages import (
    PROTOCOL_VERSION,
    Answer,
    Challenge,
    ClientMessage,
    Welcome,
)
from deploy.step_channel.sockets import send_all
from smart_serve.drafters.protocol import (
    DraftBatch,
    DraftInput,
)
from smart_serve.speculation.plan import GrowthPlan

SECRET = b"a secret that only this test has"
GROWTH = GrowthPlan(policy="smart", max_nodes=64, max_depth=4, top_k=3, wire_ms=0.1)


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def batch_of(*inputs: DraftInput) -> DraftBatch:
    return DraftBatch(inputs, GROWTH)


def draft_input(sequence_id: int, start: int, tokens: list[int], fill: float = 1.0) -> DraftInput:
    ids = np.array(tokens, np.int64)
    return DraftInput(sequence_id, start, ids, torch.full((len(tokens), 4), fill))


class RawPeer:
    """A client that says whatever the test wants."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(str(path))
        self._reader = server_frames()
        self.challenge = self.read()

    def read(self) -> object:
        while (frame := self._reader.read(self.socket)) is None:
            pass
        return frame.message

    def say(self, message: ClientMessage, *arrays: memoryview) -> None:
        send_all(self.socket, encode_frame(message, arrays))

    def enter(self) -> RawPeer:
        assert isinstance(self.challenge, Challenge)
        nonce = new_nonce()
        mac = proof(SECRET, "client", self.challenge.nonce, nonce)
        self.say(Answer(PROTOCOL_VERSION, nonce, mac))
        assert isinstance(self.read(), Welcome)
        return self

    def is_hung_up(self) -> bool:
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionResetError:
            pass
        return True
