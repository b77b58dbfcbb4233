"""A drafter behind the step channel, and a target's end of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from channel_rig import SECRET
from counting_drafter import CountingDrafter

from deploy.step_channel import server
from deploy.step_channel.client import RemoteDrafter


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
