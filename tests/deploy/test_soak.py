"""Many good and bad requests, 32 at a time: right answers, and nothing that stays behind."""

from __future__ import annotations

import asyncio
import gc
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_app import LocalSource, local_app, served
from served_app import wait_for
from starlette.types import ASGIApp, Receive, Scope, Send

MODEL = "smart-serve-bundled"
REQUESTS, WARM_UP, AT_ONCE = 10_000, 2_000, 32
MAX_MB_PER_1000 = 1.0
_CHAT, _HI = "/v1/chat/completions", [{"role": "user", "content": "Hi"}]
MIX: tuple[tuple[str, dict[str, Any], int], ...] = (
    (_CHAT, {"messages": _HI, "max_tokens": 2}, 200),
    (_CHAT, {"messages": _HI, "max_tokens": 2, "stream": True}, 200),
    (_CHAT, {"messages": _HI, "max_tokens": 0}, 400),
    (_CHAT, {"messages": _HI, "unknown": 1}, 400),
    (_CHAT, {"messages": [], "n": 3}, 400),
    (_CHAT, {"messages": [{"role": "user", "content": "shape " * 4000}]}, 400),
    ("/tokenize", {"prompt": "three red circles"}, 200),
    ("/detokenize", {"tokens": [5, 6, 7]}, 200),
    ("/detokenize", {"tokens": [-1]}, 400),
    ("/nothing", {}, 404),
)


class Leak:
    """The application, but it keeps 4 KiB of every request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._kept: list[bytearray] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._kept.append(bytearray(b"x" * 4096))
        await self._app(scope, receive, send)


def resident_mb() -> float:
    gc.collect()
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def send_all(url: str, count: int) -> None:
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def worker(first: int) -> None:
            for i in range(first, count, AT_ONCE):
                path, body, status = MIX[i % len(MIX)]
                response = await client.post(path, json={"model": MODEL, **body})
                assert response.status_code == status, (path, body, response.text)

        await asyncio.gather(*map(worker, range(AT_ONCE)))


def grown_mb_per_1000(app: ASGIApp, warm_up: int, count: int) -> float:
    with served(app) as url:
        asyncio.run(send_all(url, warm_up))
        before = resident_mb()
        asyncio.run(send_all(url, count))
        return (resident_mb() - before) / count * 1000


@pytest.mark.slow
def test_memory_does_not_grow_with_requests(source: LocalSource) -> None:
    assert grown_mb_per_1000(local_app(source), WARM_UP, REQUESTS - WARM_UP) < MAX_MB_PER_1000
    wait_for(source.is_idle)


@pytest.mark.slow
def test_a_planted_leak_is_seen(source: LocalSource) -> None:
    assert grown_mb_per_1000(Leak(local_app(source)), 500, 2_000) > MAX_MB_PER_1000
