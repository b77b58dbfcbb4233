"""Who may ask a drafter, and whom a target believes to be one."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from channel_rig import SECRET, RawPeer, wait_for
from counting_drafter import CountingDrafter

from deploy.step_channel import server
from deploy.step_channel.client import RemoteDrafter
from deploy.step_channel.frames import encode_frame
from deploy.step_channel.handshake import new_nonce, proof
from deploy.step_channel.messages import (
    PROTOCOL_VERSION,
    Answer,
    Challenge,
    Ping,
    Refusal,
    Welcome,
)
from deploy.step_channel.sockets import send_all
from smart_serve.drafters.protocol import DrafterUnavailable


def test_wrong_secret_is_refused(serving: server.DrafterServer, path: Path) -> None:
    with pytest.raises(DrafterUnavailable, match="wrong secret"):
        RemoteDrafter(b"another secret, just as long ....", unix_path=path)
    wait_for(lambda: serving.num_connections == 0)


def test_a_guessable_secret_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="secret"):
        RemoteDrafter(b"short", unix_path=path)
    with pytest.raises(ValueError, match="secret"):
        server.DrafterServer(CountingDrafter(), b"short", unix_path=path)


def test_wrong_version_is_refused(serving: server.DrafterServer, path: Path) -> None:
    peer = RawPeer(path)
    peer.say(Answer(PROTOCOL_VERSION + 1, new_nonce(), b""))
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
                send_all(peer, encode_frame(message))
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
    peer.say(Ping(1))
    assert peer.is_hung_up()


def test_a_proof_cannot_be_reflected(serving: server.DrafterServer, path: Path) -> None:
    peer = RawPeer(path)
    assert isinstance(peer.challenge, Challenge)
    nonce = new_nonce()
    mac = proof(SECRET, "server", peer.challenge.nonce, nonce)
    peer.say(Answer(PROTOCOL_VERSION, nonce, mac))
    assert isinstance(peer.read(), Refusal)
