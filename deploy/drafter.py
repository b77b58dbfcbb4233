"""The drafter deployment: a drafter behind the step channel, leased to targets through Serve."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from deploy.args import AppArgs
from deploy.endpoint import Endpoint
from deploy.metrics.exporter import Exporter
from deploy.node import accelerator_type, node_id, node_ip, use_threads
from smart_serve.models.folders import resolve_model

HEARTBEAT_S = 0.5


class DrafterReplica:
    """Loads the drafter, measures it, and serves steps on a socket until the replica ends."""

    def __init__(self, args: AppArgs, secret: bytes) -> None:
        from deploy.step_channel.server import DrafterServer
        from smart_serve.drafters.load import load_drafter

        assert args.drafter is not None
        use_threads(None)
        drafter = load_drafter(args.drafter, resolve_model(args.model), args.drafter_config())
        # A folder of its own with a short path: only this user may enter it, and the path of a
        # Unix socket has room for about a hundred characters.
        self._folder = Path(tempfile.mkdtemp(prefix="smart-serve-"))
        host = node_ip() if args.drafter_network == "node" else None
        path = self._folder / "drafter.sock"
        self._server = DrafterServer(drafter, secret, unix_path=path, tcp_host=host)
        self._server.start()
        self._endpoint = self._make_endpoint(path, host)
        self._metrics = Exporter("drafter", device_type=accelerator_type())
        self._num_leases = 0
        self._count_leases(0)
        self._export_totals()

    def record_replica_metadata(self) -> dict[str, Any]:
        """Read by Serve once, when the replica is ready; targets find it in their selection."""
        return self._endpoint.as_metadata()

    async def lease(self, target_id: str) -> AsyncIterator[str]:
        """A beat each `HEARTBEAT_S` for as long as a target uses this replica.

        Serve counts it as an ongoing request, cancels it when the target goes, and fails it at the
        target when this replica dies.
        """
        self._count_leases(+1)
        try:
            while True:
                yield target_id
                await asyncio.sleep(HEARTBEAT_S)
        finally:
            self._count_leases(-1)

    async def describe(self) -> dict[str, Any]:
        """Process id, connected targets and the address."""
        connections = self._server.num_connections
        return {"pid": os.getpid(), "connections": connections, **self._endpoint.as_metadata()}

    def _count_leases(self, more: int) -> None:
        self._num_leases += more
        self._metrics.set("drafter_leases", self._num_leases)

    def _export_totals(self) -> None:
        totals = self._server.totals
        self._metrics.raise_to("drafter_questions", totals.questions)
        self._metrics.raise_to("drafter_drafts", totals.drafts)
        self._metrics.raise_to("drafter_sequences", totals.sequences)

    def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        if not self._server.is_alive:
            raise RuntimeError("the step channel's thread has ended")
        # Serve asks every few seconds, and Ray forgets a gauge that is not set again.
        self._count_leases(0)
        self._export_totals()

    def __del__(self) -> None:
        # Serve calls this when it retires the replica; a constructor that failed has less to end.
        server = self.__dict__.get("_server")
        if server is not None:
            server.stop()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _make_endpoint(self, path: Path, host: str | None) -> Endpoint:
        from deploy.step_channel.messages import PROTOCOL_VERSION

        return Endpoint(
            node_id=node_id(),
            unix_path=str(path),
            host=host,
            port=self._server.tcp_port,
            protocol_version=PROTOCOL_VERSION,
            accelerator_type=accelerator_type(),
        )
