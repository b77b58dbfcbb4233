"""A target's lease of a drafter replica: Serve binds, the step channel carries."""

from __future__ import annotations

import asyncio
import logging

from ray import serve
from ray.serve.handle import DeploymentHandle

from deploy.endpoint import Endpoint
from deploy.failures import RAY_FAILURES, first_line
from deploy.node import node_id
from deploy.step_channel.client import RemoteDrafter
from smart_serve.drafters.protocol import DrafterUnavailable
from smart_serve.engine.loop import EngineLoop

logger = logging.getLogger("ray.serve")

FIRST_RETRY_S = 0.25
LAST_RETRY_S = 5.0
SILENCE_S = 5.0
"""Ten beats missed: the replica hangs, or its node is gone."""


class DrafterLease:
    """Keeps one drafter replica bound to this target's engine, and finds another when it is lost.

    The engine decodes plainly while it has none. Owned by the replica's event loop.
    """

    def __init__(self, drafters: DeploymentHandle, secret: bytes, engine: EngineLoop) -> None:
        self._handle = drafters.options(method_name="lease", stream=True)
        self._secret = secret
        self._engine = engine
        self._target_id: str = serve.get_replica_context().replica_id.unique_id
        self._remote: RemoteDrafter | None = None
        self.drafter_id: str | None = None
        """The replica that is leased now."""
        self.num_lost = 0
        """Leases that were held and ended."""
        self._task = asyncio.create_task(self._keep())

    @property
    def wire_ms(self) -> float | None:
        """What a step pays for the hop to the drafter; None while there is none."""
        remote = self._remote
        return remote.wire_ms if remote is not None and remote.is_connected else None

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _keep(self) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            begun = asyncio.get_running_loop().time()
            try:
                await self._hold_one()
                logger.warning("the drafter does not answer; another is sought")
            except TimeoutError:
                logger.warning("the drafter is silent; another is sought")
            except (*RAY_FAILURES, DrafterUnavailable, ValueError) as error:
                logger.warning("the lease of a drafter ended: %s", first_line(error))
            held_s = asyncio.get_running_loop().time() - begun
            retry_s = FIRST_RETRY_S if held_s > LAST_RETRY_S else min(2 * retry_s, LAST_RETRY_S)
            await asyncio.sleep(retry_s)

    async def _hold_one(self) -> None:
        """Binds one replica and stays until it, or the connection to it, is lost."""
        async with self._handle.choose_replica(self._target_id) as selection:
            endpoint = Endpoint.from_metadata(selection.replica_metadata)
            remote = await asyncio.to_thread(self._connect, endpoint)
            beats = self._handle.dispatch(selection, self._target_id)
            try:
                self._remote, self.drafter_id = remote, selection.replica_id
                self._engine.set_drafter(remote)
                while remote.is_connected:
                    async with asyncio.timeout(SILENCE_S):
                        if await anext(aiter(beats), None) is None:
                            return
            finally:
                beats.cancel()
                self._remote = self.drafter_id = None
                self.num_lost += 1
                # The engine's thread lets go of the connection before it is closed here.
                await self._engine.call(lambda engine: engine.set_drafter(None))
                remote.disconnect()

    def _connect(self, endpoint: Endpoint) -> RemoteDrafter:
        path = endpoint.unix_path_from(node_id())
        remote = RemoteDrafter(self._secret, unix_path=path, address=endpoint.address)
        where = "this node" if path is not None else str(endpoint.host)
        logger.info("leased a drafter on %s, wire %.3f ms", where, remote.wire_ms)
        return remote
