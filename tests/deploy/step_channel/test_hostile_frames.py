"""Frames that are late, too large, cut or nonsense end one connection and nothing else."""

from __future__ import annotations

import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from channel_rig import GROWTH, SECRET, RawPeer, batch_of, draft_input, wait_for
from counting_drafter import CountingDrafter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.step_channel import connection, server
from deploy.step_channel.arrays import WireArray
from deploy.step_channel.client import RemoteDrafter
from deploy.step_channel.errors import ProtocolError
from deploy.step_channel.frames import MAX_HANDSHAKE_BYTES, client_frames, encode_frame
from deploy.step_channel.messages import (
    Ping,
    Pong,
    Propose,
)
from smart_serve.drafters.protocol import DraftBatch, Proposal


@pytest.mark.parametrize("is_open", [False, True])
def test_an_oversized_frame_ends_the_connection(
    serving: server.DrafterServer, remote: RemoteDrafter, path: Path, is_open: bool
) -> None:
    peer = RawPeer(path)
    if is_open:
        peer.enter()
    size = 2**32 - 1 if is_open else MAX_HANDSHAKE_BYTES + 1
    peer.socket.sendall(struct.pack("<I", size))
    assert peer.is_hung_up()
    assert remote.propose(batch_of(draft_input(1, 0, [1]))).growth.forest.num_nodes > 0


def test_a_truncated_frame_is_dropped_at_its_deadline(
    serving: server.DrafterServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FRAME_S", 0.2)
    peer = RawPeer(path).enter()
    peer.socket.sendall(encode_frame(Ping(1))[:-1])
    assert peer.is_hung_up()
    silent = RawPeer(path)
    monkeypatch.setattr(connection, "HANDSHAKE_S", 0.2)
    assert silent.is_hung_up()
    wait_for(lambda: serving.num_connections == 0)


def test_a_frame_may_arrive_byte_by_byte(serving: server.DrafterServer, path: Path) -> None:
    peer = RawPeer(path).enter()
    for byte in encode_frame(Ping(5)):
        peer.socket.sendall(bytes([byte]))
        time.sleep(0.001)
    assert peer.read() == Pong(5)


def test_contradictory_batches_end_the_connection(
    serving: server.DrafterServer, remote: RemoteDrafter, path: Path
) -> None:
    def column(*values: int) -> WireArray:
        return WireArray.from_numpy(np.array(values, np.int64))

    vectors = WireArray.from_tensor(torch.ones(2, 4))
    good = Propose(0, column(1), column(0), column(2), column(5, 6), column(2), vectors, GROWTH)
    changed = msgspec.structs.replace
    both = column(1, 1)
    twice = changed(good, starts=column(0, 0), counts=both, vector_counts=both)
    for bad in (
        changed(good, counts=column(3)),
        changed(good, counts=column(-1)),
        changed(good, starts=column(-1)),
        changed(good, starts=column(0, 1)),
        changed(good, vectors=None),
        changed(good, positions=column(5, 6)),
        changed(good, positions=WireArray.from_numpy(np.zeros((3, 3), np.int64))),
        changed(good, positions=WireArray.from_numpy(np.zeros((3, 2), np.float64))),
        changed(twice, sequence_ids=column(1, 1)),
        changed(good, vector_counts=column(1)),
        changed(good, vector_counts=column(-1)),
        changed(good, vector_counts=column(2, 0)),
        changed(good, vectors=WireArray.from_tensor(torch.ones(2, 5))),
        changed(good, token_ids=WireArray("int64", (2,), memoryview(b"1234"))),
        changed(good, token_ids=WireArray("int64", (-2, -1), memoryview(b"1" * 16))),
        changed(good, token_ids=WireArray("object", (2,), memoryview(b"1" * 16))),
    ):
        peer = RawPeer(path).enter()
        peer.socket.sendall(encode_frame(bad))
        assert peer.is_hung_up()
    assert remote.propose(batch_of(draft_input(1, 0, [1]))).growth.forest.num_nodes > 0


class LongWinded(CountingDrafter):
    """Its answers are larger than any socket's buffer."""

    def propose(self, batch: DraftBatch) -> Proposal:
        proposal = super().propose(batch)
        wide = tuple((0.5,) * 100_000 for _ in range(10))
        return replace(proposal, growth=replace(proposal.growth, best_by_depth=wide))


def test_a_target_that_takes_no_answer_holds_up_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = server.DrafterServer(LongWinded(), SECRET, unix_path=path)
    serving.start()
    slow, other = (RemoteDrafter(SECRET, unix_path=path) for _ in range(2))
    batch = batch_of(draft_input(1, 0, [1]))
    answer = slow.ask(batch)
    assert other.propose(batch).growth.forest.num_nodes > 0
    # It is kept for as long as the target cares to take it.
    assert answer().growth.forest.num_nodes > 0
    slow.ask(batch)
    monkeypatch.setattr(connection, "TAKE_S", 0.2)
    wait_for(lambda: serving.num_connections == 1)
    assert other.propose(batch).growth.forest.num_nodes > 0
    serving.stop()


@pytest.fixture(scope="module")
def lasting() -> Iterator[tuple[server.DrafterServer, Path]]:
    with tempfile.TemporaryDirectory(prefix="ss-") as folder:
        path = Path(folder, "d")
        one = server.DrafterServer(CountingDrafter(), SECRET, unix_path=path)
        one.start()
        yield one, path
        one.stop()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=200), framed=st.booleans(), entered=st.booleans())
def test_random_bytes_never_stop_the_server(
    lasting: tuple[server.DrafterServer, Path], data: bytes, framed: bool, entered: bool
) -> None:
    serving, path = lasting
    peer = RawPeer(path)
    if entered:
        peer.enter()
    peer.socket.sendall(struct.pack("<I", len(data)) + data if framed else data)
    peer.socket.close()
    good = RemoteDrafter(SECRET, unix_path=path)
    good.disconnect()
    assert serving.is_alive


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_flipped_byte_never_stops_the_server(
    lasting: tuple[server.DrafterServer, Path], position: int, byte: int
) -> None:
    serving, path = lasting
    column = WireArray.from_numpy(np.array([1], np.int64))
    vectors = WireArray.from_tensor(torch.ones(1, 4))
    frame = encode_frame(Propose(0, column, column, column, column, column, vectors, GROWTH))
    frame[4 + position % (len(frame) - 4)] = byte
    peer = RawPeer(path).enter()
    peer.socket.sendall(frame)
    peer.socket.close()
    good = RemoteDrafter(SECRET, unix_path=path)
    good.disconnect()
    assert serving.is_alive


def test_reader_says_what_is_wrong() -> None:
    left, right = socket.socketpair()
    left.sendall(struct.pack("<I", 3) + b"\xc1\xc1\xc1")
    reader = client_frames()
    assert reader.read(right) is None
    with pytest.raises(ProtocolError, match="unreadable"):
        reader.read(right)
    left.close()
    right.close()
