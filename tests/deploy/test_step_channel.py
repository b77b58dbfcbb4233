from __future__ import annotations

import dataclasses
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from counting_drafter import CountingDrafter, refuse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.step_channel import connection, server
from deploy.step_channel.arrays import WireArray
from deploy.step_channel.client import RemoteDrafter
from deploy.step_channel.convert import batch_to_message, message_to_batch
from deploy.step_channel.errors import ProtocolError
from deploy.step_channel.frames import MAX_HANDSHAKE_BYTES, client_frames, encode_frame
from deploy.step_channel.handshake import new_nonce, proof
from deploy.step_channel.messages import (
    PROTOCOL_VERSION,
    Answer,
    Challenge,
    Failed,
    Ping,
    Pong,
    Propose,
    Refusal,
    Welcome,
)
from smart_serve.drafters.protocol import (
    DraftBatch,
    DrafterUnavailable,
    DraftInput,
    Proposal,
    VectorKind,
)
from smart_serve.speculation.plan import GrowthPlan

SECRET = b"a secret that only this test has"
GROWTH = GrowthPlan(policy="smart", max_nodes=64, max_depth=4, top_k=3, wire_ms=0.1)


@pytest.fixture
def drafter() -> CountingDrafter:
    return CountingDrafter()


@pytest.fixture
def path() -> Iterator[Path]:
    # Short, because a Unix socket's path has about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ss-") as folder:
        yield Path(folder, "d")


@pytest.fixture
def serving(drafter: CountingDrafter, path: Path) -> Iterator[server.DrafterServer]:
    one = server.DrafterServer(drafter, SECRET, unix_path=path, tcp_host="127.0.0.1")
    one.start()
    yield one
    one.stop()
    assert not one.is_alive
    assert not path.exists()


@pytest.fixture
def remote(serving: server.DrafterServer, path: Path) -> Iterator[RemoteDrafter]:
    one = RemoteDrafter(SECRET, unix_path=path)
    yield one
    one.disconnect()


def wait_for(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def batch_of(*inputs: DraftInput) -> DraftBatch:
    return DraftBatch(inputs, GROWTH)


def draft_input(sequence_id: int, start: int, tokens: list[int], fill: float = 1.0) -> DraftInput:
    ids = np.array(tokens, np.int64)
    return DraftInput(sequence_id, start, ids, torch.full((len(tokens), 4), fill))


def assert_same(left: Proposal, right: Proposal) -> None:
    for field in dataclasses.fields(left.growth.forest):
        one, two = (getattr(side.growth.forest, field.name) for side in (left, right))
        assert np.array_equal(one, two)
        assert one.dtype == two.dtype
    for name in ("unknown", "layer_ms", "layer_rows"):
        assert getattr(left, name) == getattr(right, name)
    assert left.growth.best_by_depth == right.growth.best_by_depth
    assert left.growth.child_mass == right.growth.child_mass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vectors", ["none", "images", "hidden", "layers"])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_answers_as_in_process(
    path: Path, dtype: torch.dtype, vectors: VectorKind, kind: str
) -> None:
    local, far = CountingDrafter(vectors), CountingDrafter(vectors)
    serving = server.DrafterServer(far, SECRET, unix_path=path, tcp_host="127.0.0.1")
    serving.start()
    assert serving.tcp_port is not None
    place = {"unix_path": path} if kind == "unix" else {"address": ("127.0.0.1", serving.tcp_port)}
    remote = RemoteDrafter(SECRET, **place)  # type: ignore[arg-type]
    assert remote.info == local.info
    random = np.random.default_rng(3)
    lengths = dict.fromkeys(range(6), 0)
    for _ in range(30):
        inputs = []
        for one in random.permutation(6)[: random.integers(0, 7)]:
            count = int(random.integers(1, 9))
            gap = int(random.integers(0, 10)) // 9  # now and then tokens that were never sent
            tokens = random.integers(0, 97, count)
            # Of `images` there may be fewer than tokens, or none.
            num = int(random.integers(0, count + 1)) if vectors == "images" else count
            rows = torch.from_numpy(random.standard_normal((num, 4))).to(dtype) if num else None
            inputs.append(DraftInput(int(one), lengths[int(one)] + gap, tokens, rows))
            lengths[int(one)] += 0 if gap else count
        batch = batch_of(*inputs)
        assert_same(remote.propose(batch), local.propose(batch))
        if random.random() < 0.2:
            lengths[2] = 0
            remote.close([2])
            local.close([2])
    remote.disconnect()
    serving.stop()


def test_positions_travel_with_their_tokens() -> None:
    drafter = CountingDrafter("none")
    tokens = np.arange(5)
    sent = tuple(
        DraftInput(i, 0, part, None, np.stack([part, 10 + part, 20 + part]))
        for i, part in enumerate((tokens[:2], tokens[2:]))
    )
    message = batch_to_message(0, batch_of(*sent), drafter.info)
    received = message_to_batch(message, drafter.info, lambda one: one).inputs
    for here, there in zip(sent, received, strict=True):
        assert np.array_equal(here.positions, there.positions)
    plain = batch_to_message(0, batch_of(draft_input(1, 0, [1, 2])), drafter.info)
    assert message_to_batch(plain, drafter.info, lambda one: one).inputs[0].positions is None


def test_measures_the_round_trip(remote: RemoteDrafter) -> None:
    assert 0.0 < remote.wire_ms < 100.0


def test_two_targets_have_sequences_of_their_own(
    serving: server.DrafterServer, drafter: CountingDrafter, path: Path
) -> None:
    first, second = (RemoteDrafter(SECRET, unix_path=path) for _ in range(2))
    first.propose(batch_of(draft_input(7, 0, [1, 2, 3])))
    assert second.propose(batch_of(draft_input(7, 3, [4]))).unknown == (0,)
    assert first.propose(batch_of(draft_input(7, 3, [4]))).unknown == ()
    assert len(drafter.held) == 2
    first.disconnect()
    wait_for(lambda: len(drafter.held) == 1)
    second.disconnect()
    wait_for(lambda: not drafter.held and serving.num_connections == 0)


@pytest.mark.parametrize("failure", [refuse(), ZeroDivisionError("a bug")])
def test_a_failing_drafter_costs_a_step_not_the_connection(
    remote: RemoteDrafter, drafter: CountingDrafter, failure: Exception
) -> None:
    drafter.failure = failure
    with pytest.raises(DrafterUnavailable):
        remote.propose(batch_of(draft_input(1, 0, [1])))
    drafter.failure = None
    assert remote.propose(batch_of(draft_input(1, 0, [1]))).growth.forest.num_nodes > 0


def test_a_late_answer_breaks_the_connection(
    serving: server.DrafterServer, drafter: CountingDrafter, path: Path
) -> None:
    remote = RemoteDrafter(SECRET, unix_path=path, propose_timeout_s=0.05)
    drafter.delay_s = 0.3
    begun = time.monotonic()
    with pytest.raises(DrafterUnavailable):
        remote.propose(batch_of(draft_input(1, 0, [1])))
    assert time.monotonic() - begun < 0.25
    assert not remote.is_connected
    with pytest.raises(DrafterUnavailable):
        remote.propose(batch_of(draft_input(1, 0, [1])))
    remote.close([1])


def test_a_dead_server_is_noticed_at_once(drafter: CountingDrafter, path: Path) -> None:
    serving = server.DrafterServer(drafter, SECRET, unix_path=path)
    serving.start()
    remote = RemoteDrafter(SECRET, unix_path=path)
    serving.stop()
    begun = time.monotonic()
    with pytest.raises(DrafterUnavailable):
        remote.propose(batch_of(draft_input(1, 0, [1])))
    assert time.monotonic() - begun < 0.5
    with pytest.raises(DrafterUnavailable):
        RemoteDrafter(SECRET, unix_path=path)


def test_missing_vectors_are_the_callers_mistake(remote: RemoteDrafter) -> None:
    with pytest.raises(ValueError, match="vector"):
        remote.propose(batch_of(DraftInput(1, 0, np.array([1]), None)))


# --- peers that are not what they should be -------------------------------------------------------


def test_wrong_secret_is_refused(serving: server.DrafterServer, path: Path) -> None:
    with pytest.raises(DrafterUnavailable, match="wrong secret"):
        RemoteDrafter(b"another secret, just as long ....", unix_path=path)
    wait_for(lambda: serving.num_connections == 0)


def test_a_guessable_secret_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="secret"):
        RemoteDrafter(b"short", unix_path=path)
    with pytest.raises(ValueError, match="secret"):
        server.DrafterServer(CountingDrafter(), b"short", unix_path=path)


class RawPeer:
    """A client that says whatever the test wants."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(str(path))
        self.challenge = self.read()

    def read(self) -> object:
        prefix = self.socket.recv(4, socket.MSG_WAITALL)
        if len(prefix) < 4:
            return None
        body = self.socket.recv(struct.unpack("<I", prefix)[0], socket.MSG_WAITALL)
        return msgspec.msgpack.decode(body, type=Challenge | Welcome | Pong | Failed | Refusal)

    def enter(self) -> RawPeer:
        assert isinstance(self.challenge, Challenge)
        nonce = new_nonce()
        mac = proof(SECRET, "client", self.challenge.nonce, nonce)
        self.socket.sendall(encode_frame(Answer(PROTOCOL_VERSION, nonce, mac)))
        assert isinstance(self.read(), Welcome)
        return self

    def is_hung_up(self) -> bool:
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionResetError:
            pass
        return True


def test_wrong_version_is_refused(serving: server.DrafterServer, path: Path) -> None:
    peer = RawPeer(path)
    peer.socket.sendall(encode_frame(Answer(PROTOCOL_VERSION + 1, new_nonce(), b"")))
    answer = peer.read()
    assert isinstance(answer, Refusal)
    assert f"version {PROTOCOL_VERSION}" in answer.reason
    assert peer.is_hung_up()


def test_a_server_of_another_version_or_without_the_secret_is_left(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(5)

    def answer_with(*messages: Challenge | Welcome) -> None:
        def talk() -> None:
            peer, _ = listener.accept()
            for message in messages:
                peer.sendall(encode_frame(message))
                peer.recv(4096)
            peer.close()

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            RemoteDrafter(SECRET, unix_path=path)
        finally:
            thread.join()

    with pytest.raises(DrafterUnavailable, match="version 9"):
        answer_with(Challenge(9, new_nonce()))
    curve = CountingDrafter().info.layer_cost
    with pytest.raises(DrafterUnavailable, match="secret"):
        answer_with(
            Challenge(PROTOCOL_VERSION, new_nonce()),
            Welcome(b"x" * 32, "counting", "hidden", 4, (), curve),
        )
    listener.close()


def test_nothing_is_served_before_the_handshake(serving: server.DrafterServer, path: Path) -> None:
    peer = RawPeer(path)
    peer.socket.sendall(encode_frame(Ping(1)))
    assert peer.is_hung_up()


def test_a_proof_cannot_be_reflected(serving: server.DrafterServer, path: Path) -> None:
    peer = RawPeer(path)
    assert isinstance(peer.challenge, Challenge)
    nonce = new_nonce()
    mac = proof(SECRET, "server", peer.challenge.nonce, nonce)
    peer.socket.sendall(encode_frame(Answer(PROTOCOL_VERSION, nonce, mac)))
    assert isinstance(peer.read(), Refusal)


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
    replace = msgspec.structs.replace
    for bad in (
        replace(good, counts=column(3)),
        replace(good, counts=column(-1)),
        replace(good, starts=column(-1)),
        replace(good, starts=column(0, 1)),
        replace(good, vectors=None),
        replace(good, positions=column(5, 6)),
        replace(good, positions=WireArray.from_numpy(np.zeros((3, 3), np.int64))),
        replace(good, positions=WireArray.from_numpy(np.zeros((3, 2), np.float64))),
        replace(good, vector_counts=column(1)),
        replace(good, vector_counts=column(-1)),
        replace(good, vector_counts=column(2, 0)),
        replace(good, vectors=WireArray.from_tensor(torch.ones(2, 5))),
        replace(good, token_ids=WireArray("int64", (2,), memoryview(b"1234"))),
        replace(good, token_ids=WireArray("int64", (-2, -1), memoryview(b"1" * 16))),
        replace(good, token_ids=WireArray("object", (2,), memoryview(b"1" * 16))),
    ):
        peer = RawPeer(path).enter()
        peer.socket.sendall(encode_frame(bad))
        assert peer.is_hung_up()
    assert remote.propose(batch_of(draft_input(1, 0, [1]))).growth.forest.num_nodes > 0


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
