"""The HTTP API over one engine in this process: everything but Ray is the real part."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import msgspec
import uvicorn
from served_app import free_port, wait_for
from starlette.types import ASGIApp

from deploy.args import AppArgs
from deploy.chat_service import ChatService
from deploy.http_api import build_http_app
from deploy.keys import KeyRing
from deploy.pool_state import PoolState
from smart_serve.bundled import TARGET_FOLDER
from smart_serve.drafters.load import load_drafter
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.engine.build import build_engine
from smart_serve.engine.loop import EngineLoop
from smart_serve.messages import GenerateRequest, LoadReport, TokenChunk
from smart_serve.routing.cluster_view import ClusterView, ReplicaView
from vision.encoder import VisionEncoder
from vision.fetch import PictureFetcher
from vision.image import CheckedImage

ARGS = AppArgs(
    limits={"max_body_bytes": 2_000_000, "body_timeout_s": 3},
    engine={"max_running": 8, "kv_tokens": 8192},
)


KEEP_ALIVE_S = 90
"""As long as Serve's proxies keep an idle connection. uvicorn's own 5 s is what clients have too,
and a request that is sent just then is lost."""


class LocalSource:
    """One engine's tokens, in place of a cluster's."""

    def __init__(self) -> None:
        config = ARGS.engine_config(ARGS.pools[0])
        self._drafter = load_drafter("bundled", TARGET_FOLDER, config)
        self.loop = EngineLoop(build_engine(TARGET_FOLDER, config, self._drafter, progress=False))
        self.loop.start()
        self._vision = VisionEncoder(TARGET_FOLDER)

    async def stream(
        self, request: GenerateRequest, images: Sequence[CheckedImage]
    ) -> AsyncGenerator[TokenChunk]:
        features = await asyncio.to_thread(self._vision.encode, images)
        chunks = cast(AsyncGenerator[TokenChunk], self.loop.generate(request, features))
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    async def view(self) -> ClusterView:
        load = msgspec.to_builtins(self.loop.load())
        fields = {name: load[name] for name in LoadReport.__struct_fields__ if name in load}
        report = LoadReport(replica_id="local", pool="default", device_type="cpu", **fields)
        return ClusterView((ReplicaView(report, 0.0),))

    async def last_view(self) -> ClusterView:
        return await self.view()

    def is_full(self) -> bool:
        return self.loop.load().waiting >= ARGS.parsed_limits().max_waiting

    async def pools(self, view: ClusterView) -> dict[str, PoolState]:
        return {"default": PoolState("serving", 1)}

    def is_idle(self) -> bool:
        load = self.loop.load()
        held = load.total_blocks - load.free_blocks - load.cached_blocks
        drafter = self._drafter
        assert isinstance(drafter, NetworkDrafter)
        drafts = drafter.total_blocks - drafter.free_blocks
        return load.running + load.waiting + held + drafts == 0


def local_app(
    source: LocalSource,
    keys: KeyRing | None = None,
    fetcher: PictureFetcher | None = None,
    **limits: float,
) -> ASGIApp:
    """Open to everybody unless `keys` are given; `limits` beside those of `ARGS`."""
    args = ARGS.model_copy(update={"limits": {**ARGS.limits, **limits}})
    return build_http_app(ChatService(args, source, fetcher), source, keys or KeyRing(()))


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The URL of `app` behind a real HTTP server on the loopback interface."""
    port = free_port()
    config = uvicorn.Config(
        app,
        "127.0.0.1",
        port,
        log_level="warning",
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
