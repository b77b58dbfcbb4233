"""Many good and bad requests, 32 at a time: right answers, and nothing that stays behind."""

from __future__ import annotations

import asyncio
import base64
import gc
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from local_app import ARGS, LocalSource, local_app, served
from served_app import wait_for
from starlette.types import ASGIApp, Receive, Scope, Send

from smart_serve.bundled import EXAMPLE_PICTURE

SAMPLE = 1_000
"""Requests between two looks at the memory."""
WARM_UP, MEASURED, AT_ONCE = 2_000, 8_000, 32
MAX_MB_PER_SAMPLE = 1.0
PICTURE = base64.b64encode(EXAMPLE_PICTURE.read_bytes()).decode()


def asking(picture: str) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "Describe it."}]}]


_CHAT, _HI = "/v1/chat/completions", [{"role": "user", "content": "Hi"}]
MIX: tuple[tuple[str, dict[str, Any], int], ...] = (
    (_CHAT, {"messages": _HI, "max_tokens": 2}, 200),
    (_CHAT, {"messages": _HI, "max_tokens": 2, "stream": True}, 200),
    (_CHAT, {"messages": asking(PICTURE), "max_tokens": 2}, 200),
    (_CHAT, {"messages": asking(PICTURE[:400]), "max_tokens": 2}, 400),
    (_CHAT, {"messages": asking("AAAA"), "stream": True}, 400),
    (_CHAT, {"messages": _HI, "max_tokens": 0}, 400),
    (_CHAT, {"messages": _HI, "unknown": 1}, 400),
    (_CHAT, {"messages": [], "n": 3}, 400),
    (_CHAT, {"messages": [{"role": "user", "content": "shape " * 4000}]}, 400),
    ("/v1/completions", {"prompt": "A red", "n": 2, "max_tokens": 1}, 200),
    ("/v1/completions", {"prompt": [-1]}, 400),
    ("/tokenize", {"prompt": "three red circles"}, 200),
    ("/detokenize", {"tokens": [5, 6, 7]}, 200),
    ("/detokenize", {"tokens": [-1]}, 400),
    ("/tokenize", {"prompt": "a", "model": "other"}, 404),
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
    # Without an expiry: httpx may close a connection that it has just chosen for a request, if the
    # whole machine stood still for as long as that.
    limits = httpx.Limits(max_connections=AT_ONCE, keepalive_expiry=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def worker(first: int) -> None:
            for i in range(first, count, AT_ONCE):
                path, body, status = MIX[(i + i // AT_ONCE) % len(MIX)]
                response = await client.post(path, json={"model": ARGS.served_name, **body})
                assert response.status_code == status, (path, body, response.text)

        await asyncio.gather(*map(worker, range(AT_ONCE)))


def slope_mb(app: ASGIApp, warm_up: int, measured: int) -> float:
    """Growth of this process in MB per `SAMPLE` requests: a least-squares line."""
    with served(app) as url:
        asyncio.run(send_all(url, warm_up))
        seen_mb = [resident_mb()]
        for _ in range(measured // SAMPLE):
            asyncio.run(send_all(url, SAMPLE))
            seen_mb.append(resident_mb())
    slope = float(np.polyfit(np.arange(len(seen_mb)), seen_mb, 1)[0])
    print(f"{slope:.3f} MB per {SAMPLE} requests: {seen_mb}")
    return slope


@pytest.fixture(autouse=True)
def _keep_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Pytest keeps every line that is logged: a leak of its own."""
    caplog.set_level(logging.WARNING, "ray.serve")


@pytest.mark.slow
def test_memory_does_not_grow_with_requests(source: LocalSource) -> None:
    assert slope_mb(local_app(source, body_timeout_s=60), WARM_UP, MEASURED) < MAX_MB_PER_SAMPLE
    wait_for(source.is_idle)


@pytest.mark.slow
def test_a_planted_leak_is_seen(source: LocalSource) -> None:
    assert slope_mb(Leak(local_app(source)), SAMPLE, 3 * SAMPLE) > MAX_MB_PER_SAMPLE
