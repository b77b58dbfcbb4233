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
from channel_rig import GROWTH, SECRET, RawPeer, batch_of, draft_input, wait_for
from counting_drafter import CountingDrafter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.step_channel import connection, server
from deploy.step_channel.client import RemoteDrafter
from deploy.step_channel.errors import ProtocolError
from deploy.step_channel.frames import MAX_HANDSHAKE_BYTES, client_frames, encode_frame
from deploy.step_channel.messages import ClientMessage, Ping, Pong, Propose, Proposed
from smart_serve.drafters.protocol import DraftBatch, Proposal


@pytest.mark.parametrize("of_message", [False, True])
@pytest.mark.parametrize("is_open", [False, True])
def test_an_oversized_frame_ends_the_connection(
    serving: server.DrafterServer,
    remote: RemoteDrafter,
    path: Path,
    is_open: bool,
    of_message: bool,
) -> None:
    peer = RawPeer(path)
    if is_open:
        peer.enter()
    size = 2**32 - 1 if is_open else MAX_HANDSHAKE_BYTES + 1
    peer.socket.sendall(struct.pack("<II", *(size, 0)[:: 1 if of_message else -1]))
    assert peer.is_hung_up()
    assert remote.propose(batch_of(draft_input(1, 0, [1]))).growth.forest.num_nodes > 0


def test_a_truncated_frame_is_dropped_at_its_deadline(
    serving: server.DrafterServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FRAME_S", 0.2)
    peer = RawPeer(path).enter()
    peer.socket.sendall(whole(Ping(1))[:-1])
    assert peer.is_hung_up()
    silent = RawPeer(path)
    monkeypatch.setattr(connection, "HANDSHAKE_S", 0.2)
    assert silent.is_hung_up()
    wait_for(lambda: serving.num_connections == 0)


def test_a_frame_may_arrive_byte_by_byte(serving: server.DrafterServer, path: Path) -> None:
    peer = RawPeer(path).enter()
    for byte in whole(Ping(5)):
        peer.socket.sendall(bytes([byte]))
        time.sleep(0.001)
    assert peer.read() == Pong(5)


TOKENS, VECTORS = np.array([5, 6]), np.ones((2, 4), np.float32)
GOOD = Propose(0, (1,), (0,), (2,), (2,), "float32", GROWTH)


def test_contradictory_batches_end_the_connection(
    serving: server.DrafterServer, remote: RemoteDrafter, path: Path
) -> None:
    changed = msgspec.structs.replace
    twice = changed(GOOD, starts=(0, 0), counts=(1, 1), vector_counts=(1, 1))
    for bad in (
        changed(GOOD, counts=(3,)),
        changed(GOOD, counts=(-1,)),
        changed(GOOD, counts=(0,)),
        changed(GOOD, counts=(2**63 - 1,)),
        changed(GOOD, starts=(-1,)),
        changed(GOOD, starts=(2**63,)),
        changed(GOOD, starts=(0, 1)),
        changed(GOOD, vector_dtype=None),
        changed(GOOD, vector_dtype="bfloat16"),
        changed(GOOD, vector_dtype="object"),
        changed(GOOD, has_positions=True),
        changed(twice, sequence_ids=(1, 1)),
        changed(GOOD, vector_counts=(1,)),
        changed(GOOD, vector_counts=(-1,)),
        changed(GOOD, vector_counts=(2, 0)),
        changed(GOOD, vector_counts=(3,)),
        changed(GOOD, vector_counts=()),
    ):
        peer = RawPeer(path).enter()
        peer.say(bad, TOKENS.data, VECTORS.data)
        assert peer.is_hung_up()
    assert remote.propose(batch_of(draft_input(1, 0, [1]))).growth.forest.num_nodes > 0


@pytest.mark.parametrize("num_bytes", [0, 16, 47, 49, 56])
def test_arrays_of_another_length_end_the_connection(
    serving: server.DrafterServer, remote: RemoteDrafter, path: Path, num_bytes: int
) -> None:
    peer = RawPeer(path).enter()
    peer.say(GOOD, memoryview(bytes(num_bytes)))
    assert peer.is_hung_up()
    # The control: as many bytes as they have.
    peer = RawPeer(path).enter()
    peer.say(GOOD, memoryview(bytes(48)))
    assert isinstance(peer.read(), Proposed)


def whole(message: ClientMessage, *arrays: memoryview) -> bytes:
    return b"".join(encode_frame(message, arrays))


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
@given(
    data=st.binary(max_size=200),
    framed=st.booleans(),
    num_raw=st.integers(0, 200),
    entered=st.booleans(),
)
def test_random_bytes_never_stop_the_server(
    lasting: tuple[server.DrafterServer, Path],
    data: bytes,
    framed: bool,
    num_raw: int,
    entered: bool,
) -> None:
    serving, path = lasting
    peer = RawPeer(path)
    if entered:
        peer.enter()
    prefix = struct.pack("<II", len(data) - num_raw % (len(data) + 1), num_raw % (len(data) + 1))
    peer.socket.sendall(prefix + data if framed else data)
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
    frame = bytearray(whole(GOOD, TOKENS.data, VECTORS.data))
    frame[position % len(frame)] = byte
    peer = RawPeer(path).enter()
    peer.socket.sendall(frame)
    peer.socket.close()
    good = RemoteDrafter(SECRET, unix_path=path)
    good.disconnect()
    assert serving.is_alive


def test_reader_says_what_is_wrong() -> None:
    left, right = socket.socketpair()
    left.sendall(struct.pack("<II", 3, 0) + b"\xc1" * 8)
    reader = client_frames()
    assert reader.read(right) is None
    with pytest.raises(ProtocolError, match="unreadable"):
        reader.read(right)
    left.close()
    right.close()
