"""A drafter over the channel is the drafter itself, until the channel fails."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from channel_rig import SECRET, batch_of, draft_input, wait_for
from counting_drafter import CountingDrafter, refuse

from deploy.step_channel import server
from deploy.step_channel.client import RemoteDrafter
from deploy.step_channel.convert import batch_to_message, message_to_batch
from deploy.step_channel.frames import MAX_FRAME_BYTES, Frame, client_frames, encode_frame
from deploy.step_channel.messages import Propose
from deploy.step_channel.sockets import send_all
from smart_serve.drafters.protocol import (
    DraftBatch,
    DrafterInfo,
    DrafterUnavailable,
    DraftInput,
    Proposal,
    VectorKind,
)


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
    received = across(batch_of(*sent), drafter.info).inputs
    for here, there in zip(sent, received, strict=True):
        assert np.array_equal(here.positions, there.positions)
    plain = across(batch_of(draft_input(1, 0, [1, 2])), drafter.info)
    assert plain.inputs[0].positions is None


def test_vectors_arrive_as_they_are_wherever_they_lie() -> None:
    info, rows = CountingDrafter().info, torch.arange(48.0).reshape(12, 4)
    one, two, three = rows[:6].split([2, 1, 3])
    other = rows.clone()[2:5]
    for parts in (
        [one, two, three],  # as they lie in the target's memory
        [one],
        [three, two],
        [two, two],
        [one, three],
        [two, other],
        [rows[:4].t(), two],
        [rows[::2], one],
    ):
        inputs = [DraftInput(i, 0, np.arange(len(part)), part) for i, part in enumerate(parts)]
        received = across(batch_of(*inputs), info).inputs
        for here, there in zip(inputs, received, strict=True):
            assert here.vectors is not None
            assert there.vectors is not None
            assert torch.equal(here.vectors, there.vectors)


def across(batch: DraftBatch, info: DrafterInfo) -> DraftBatch:
    """As it arrives."""
    message, arrays = batch_to_message(0, batch, info)
    left, right = socket.socketpair()
    with left, right:
        send_all(left, encode_frame(message, arrays))
        reader = client_frames()
        reader.limit_bytes = MAX_FRAME_BYTES
        while (frame := reader.read(right)) is None:
            pass
    assert isinstance(frame.message, Propose)
    return message_to_batch(Frame(frame.message, frame.raw), info, lambda one: one)


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
    drafter.delay_s = 2.0
    with pytest.raises(DrafterUnavailable):
        remote.propose(batch_of(draft_input(1, 0, [1])))
    # It is still at it, and nobody waits.
    assert not drafter.held
    assert not remote.is_connected
    with pytest.raises(DrafterUnavailable):
        remote.propose(batch_of(draft_input(1, 0, [1])))
    remote.close([1])


def test_a_dead_server_is_noticed_at_once(drafter: CountingDrafter, path: Path) -> None:
    serving = server.DrafterServer(drafter, SECRET, unix_path=path)
    serving.start()
    # Whoever waited for an answer would wait for longer than any test may take.
    remote = RemoteDrafter(SECRET, unix_path=path, propose_timeout_s=3600.0)
    serving.stop()
    with pytest.raises(DrafterUnavailable):
        remote.propose(batch_of(draft_input(1, 0, [1])))
    with pytest.raises(DrafterUnavailable):
        RemoteDrafter(SECRET, unix_path=path)


def test_missing_vectors_are_the_callers_mistake(remote: RemoteDrafter) -> None:
    with pytest.raises(ValueError, match="vector"):
        remote.propose(batch_of(DraftInput(1, 0, np.array([1]), None)))


def test_an_answer_may_wait_to_be_read(remote: RemoteDrafter, drafter: CountingDrafter) -> None:
    """What was asked first and not read is lost; the connection goes on."""
    first = remote.ask(batch_of(draft_input(1, 0, [1, 2])))
    second = remote.ask(batch_of(draft_input(2, 0, [3])))
    expected = CountingDrafter().propose(batch_of(draft_input(2, 0, [3])))
    with pytest.raises(DrafterUnavailable, match="not waited for"):
        first()
    assert_same(second(), expected)
    with pytest.raises(DrafterUnavailable, match="not waited for"):
        second()
    drafter.failure = refuse()
    third = remote.ask(batch_of(draft_input(2, 1, [3])))
    with pytest.raises(DrafterUnavailable, match="full"):
        third()
    drafter.failure = None
    assert remote.propose(batch_of(draft_input(2, 1, [3]))).unknown == ()


def test_a_lost_drafter_shows_in_the_answer(drafter: CountingDrafter, path: Path) -> None:
    serving = server.DrafterServer(drafter, SECRET, unix_path=path)
    serving.start()
    remote = RemoteDrafter(SECRET, unix_path=path)
    drafter.delay_s = 0.2
    answer = remote.ask(batch_of(draft_input(1, 0, [1])))
    remote.disconnect()
    with pytest.raises(DrafterUnavailable):
        answer()
    again = RemoteDrafter(SECRET, unix_path=path)
    again.ask(batch_of(draft_input(1, 0, [1])))()
    lost = again.ask(batch_of(draft_input(1, 1, [1])))
    lost()
    serving.stop()
    with pytest.raises(DrafterUnavailable):
        again.ask(batch_of(draft_input(1, 2, [1])))()
    assert not again.is_connected
