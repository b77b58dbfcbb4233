"""One request through the cluster: assign, encode pictures, stream tokens, survive a replica."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import msgspec
import ray
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from deploy.args import AppArgs
from deploy.by_value import BY_VALUE_BYTES
from deploy.failures import (
    RAY_FAILURES,
    REPLICA_LOST,
    ReplicaSilentError,
    as_own_error,
    first_line,
)
from deploy.metrics.ingress import AnswerClock, IngressMetrics
from deploy.pool_state import PoolState, pool_states
from deploy.resumption import Resumption
from deploy.spans import begin, trace_parent
from smart_serve.errors import ServerError, SmartServeError
from smart_serve.messages import NOTHING, Assignment, GenerateRequest, RequestShape, TokenChunk
from smart_serve.routing.assign import Offer, assign
from smart_serve.routing.cluster_view import ClusterView
from smart_serve.routing.pool_load import PoolLoad
from smart_serve.routing.prefixes import prefix_keys
from vision.image import CheckedImage

logger = logging.getLogger("ray.serve")

ROUTER_S = 0.5
"""A request waits no longer for the router: the last view decides."""
VIEW_S = 1.0
STATUS_S = 5.0
"""Who asks how the cluster stands can wait for the router, and for Ray's own store. They answer in
a few ms, or are restarting."""
SILENCE_S = 10.0
"""Of a stream that has begun: its replica, or the node, is gone. Ten beats (`deploy.target`)."""
LOOK_S = 10.0
"""How often is looked for pools without nodes."""


class Dispatcher:
    """Holds the handles of the other deployments and the last view of the cluster."""

    def __init__(
        self,
        args: AppArgs,
        pools: Mapping[str, DeploymentHandle],
        router: DeploymentHandle,
        metrics: IngressMetrics,
    ) -> None:
        self._targets = {
            name: handle.options(
                method_name="generate",
                stream=True,
                _by_reference=False,
                response_serialization="pickle",
            )
            for name, handle in pools.items()
        }
        self._router = router
        self._pools = args.pools
        self._offers = args.offers()
        self._absent: set[str] = set()
        self._limits = args.parsed_limits()
        self._metrics = metrics
        self._view = ClusterView()
        self._watching = asyncio.create_task(self._watch())

    async def stream(
        self, request: GenerateRequest, images: Sequence[CheckedImage]
    ) -> AsyncGenerator[TokenChunk]:
        """The request's tokens, a chunk per step; the last one carries reason and stats.

        Ending it early cancels the request in the target. Raises `SmartServeError` only.
        """
        clock = AnswerClock()
        span = begin("answer", request_id=request.request_id, prompt_tokens=len(request.token_ids))
        request = msgspec.structs.replace(request, trace_parent=trace_parent(span))
        try:
            async with aclosing(self._stream(request, images, clock)) as chunks:
                async for chunk in chunks:
                    clock.note_tokens(len(chunk.token_ids))
                    yield chunk
        finally:
            span.set_attributes(clock.figures())
            span.end()
            self._metrics.answer(clock, self._view.device_type(clock.pool))

    async def _stream(
        self, request: GenerateRequest, images: Sequence[CheckedImage], clock: AnswerClock
    ) -> AsyncGenerator[TokenChunk]:
        deadline = asyncio.get_running_loop().time() + self._limits.request_timeout_s
        resumption = Resumption(request)
        lost: Assignment | None = None
        for _ in range(1 + self._limits.max_resumptions):
            assigned = await self._assign(request, lost)
            try:
                clock.note_replica(assigned.pool)
                once = self._stream_once(assigned, resumption.request(), images, deadline)
                async with aclosing(once):
                    async for chunk in once:
                        yield resumption.take(chunk)
                return
            except REPLICA_LOST as error:
                lost = assigned
                logger.warning("request %s lost its replica: %s", request.request_id, error)
            except TimeoutError:
                message = f"no answer within {self._limits.request_timeout_s:.0f} s"
                raise ServerError(message, code="timeout", status=504) from None
            except SmartServeError:
                raise
            except Exception as error:  # whatever a target fails with arrives as it is
                raise as_own_error(error) from None
        raise ServerError("a part of the server is restarting", code="unavailable", status=503)

    async def view(self, patience_s: float = STATUS_S) -> ClusterView:
        """The router's view. Raises `ServerError` when it does not answer."""
        try:
            async with asyncio.timeout(patience_s):
                self._view = await self._router.cluster.remote()
        except (TimeoutError, *RAY_FAILURES):
            message = "the router does not answer"
            raise ServerError(message, code="unavailable", status=503) from None
        return self._view

    async def last_view(self) -> ClusterView:
        """The same, or, while the router does not answer, what it said last: requests are sent by
        that too. Raises `ServerError` if it never said anything."""
        try:
            return await self.view(ROUTER_S)
        except ServerError:
            if not self._view.replicas:
                raise
            return self._view

    async def pools(self, view: ClusterView) -> dict[str, PoolState]:
        """How each pool stands. Raises `ServerError` when the cluster does not tell."""
        try:
            async with asyncio.timeout(STATUS_S):
                nodes = await asyncio.to_thread(ray.nodes)
        except TimeoutError:
            message = "the cluster does not tell of its nodes"
            raise ServerError(message, code="unavailable", status=503) from None
        return pool_states(self._pools, view, nodes)

    def is_full(self) -> bool:
        """By the last view, which is a second old at most while the router answers."""
        return self._view.is_full(self._limits.max_waiting)

    def stop(self) -> None:
        self._watching.cancel()

    async def _stream_once(
        self,
        assigned: Assignment,
        request: GenerateRequest,
        images: Sequence[CheckedImage],
        deadline: float,
    ) -> AsyncGenerator[TokenChunk]:
        target = self._targets[assigned.pool]
        if assigned.replica is not None:
            target = target.options(session_id=assigned.replica)
        if _size_bytes(request, images) > BY_VALUE_BYTES:
            target = target.options(_by_reference=True)
        chunks, silence_s = target.remote(request, list(images)), math.inf
        try:
            while True:
                async with asyncio.timeout_at(min(deadline, _now_s() + silence_s)):
                    chunk = await _next(chunks)
                if chunk is None:
                    return
                # It has begun: before, it may have waited for a replica to start.
                silence_s = SILENCE_S
                if chunk != NOTHING:
                    yield chunk
        except TimeoutError:
            if _now_s() < deadline:
                raise ReplicaSilentError(f"no sign of life for {SILENCE_S:.0f} s") from None
            raise
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            # It came with a message: the replica is being stopped.
            raise ReplicaSilentError("it has cancelled the request") from None
        finally:
            # Ending the iteration alone would leave the target, and the encoder, at work.
            chunks.cancel()

    async def _assign(self, request: GenerateRequest, lost: Assignment | None) -> Assignment:
        """`lost`: where the request was until now; None: nowhere."""
        if len(self._targets) == len(self._view.replicas) == 1:
            return Assignment(pool=self._offers[0].pool, reason="the only replica")
        shape = RequestShape(
            prompt_tokens=len(request.token_ids),
            max_tokens=request.sampling.max_tokens,
            prefixes=prefix_keys(request.token_ids, request.image_spans),
        )
        if lost is not None:
            # For some seconds the router still counts with what has just died.
            loads = self._view.pools()
            return assign(shape, loads, offers_without(lost.pool, loads, self._offers))
        try:
            async with asyncio.timeout(ROUTER_S):
                chosen: Assignment = await self._router.assign.remote(shape)
                return chosen
        except (TimeoutError, *RAY_FAILURES) as error:
            self._metrics.router_is_away()
            logger.warning("the router is away, the last view decides: %s", first_line(error))
            return assign(shape, self._view.pools(), self._offers)

    async def _watch(self) -> None:
        """Keeps a view for the time when the router is away; tells of pools without nodes."""
        for beat in itertools.count():
            try:
                view = await self.view()
                if beat % round(LOOK_S / VIEW_S) == 0:
                    self._tell_absent(await self.pools(view))
            except ServerError as error:
                logger.info("%s", error.message)
            await asyncio.sleep(VIEW_S)

    def _tell_absent(self, pools: Mapping[str, PoolState]) -> None:
        absent = {name for name, pool in pools.items() if pool.state == "no_node"}
        for name in absent - self._absent:
            logger.warning("pool %s waits: the cluster has no node that it could stand on", name)
        self._absent = absent


def offers_without(
    pool: str, loads: Mapping[str, PoolLoad], offers: Sequence[Offer]
) -> Sequence[Offer]:
    """What is left after a replica of `pool` was lost: another pool that serves, if it had no
    other replica, for then it is empty now."""
    if pool not in loads or loads[pool].replicas > 1:
        return offers
    return [one for one in offers if one.pool != pool and one.pool in loads] or offers


def _size_bytes(request: GenerateRequest, images: Sequence[CheckedImage]) -> int:
    """Of the message that asks for an answer, or somewhat less."""
    return 8 * len(request.token_ids) + sum(len(image.data) for image in images)


def _is_cancelled() -> bool:
    """Whether the one who asks is."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _now_s() -> float:
    return asyncio.get_running_loop().time()


async def _next(chunks: DeploymentResponseGenerator[TokenChunk]) -> TokenChunk | None:
    return await anext(aiter(chunks), None)
