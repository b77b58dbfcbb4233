"""The served application as the tests see it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deploy import proxy

APP = "smart-serve"


@dataclass(frozen=True)
class ServedApp:
    """The running application."""

    url: str
    handle: Any
    logs: Path = Path()
    """Where Ray writes them."""
    model: str = "smart-serve-bundled"

    def call(self, deployment: str, method: str) -> Any:
        from ray import serve

        handle = serve.get_deployment_handle(deployment, APP)
        return getattr(handle, method).remote().result(timeout_s=30)

    def blocks(self) -> dict[str, int]:
        blocks: dict[str, int] = self.call("target-default", "blocks")
        return blocks

    def wait_until_idle(self) -> None:
        """Every KV block is free, or kept for its prefix."""

        def is_idle() -> bool:
            blocks = self.blocks()
            busy = blocks["running"] + blocks["waiting"]
            return busy == 0 and blocks["free"] + blocks["cached"] == blocks["total"]

        wait_for(is_idle)

    def body(self, text: str = "How many shapes are there?", **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        return {"model": self.model, "messages": messages, "temperature": 0, **fields}

    def ask(self, **fields: Any) -> httpx.Response:
        body = self.body(**fields)
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def as_shipped(folder: Path, drain_s: int = 0) -> dict[str, str]:
    """Environment of Ray's processes, HAProxy's among them, in a folder and on ports of its own.

    `drain_s`: for which an ingress that is being stopped still answers, as HAProxies learn of it
    later; Serve's default is 30. Who stops all of the application has ended its streams.
    """
    return {
        **proxy.NODE,
        **proxy.beside_others(folder),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(drain_s),
    }


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
