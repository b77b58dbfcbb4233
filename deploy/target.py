"""The target deployment, one per pool: an engine behind `generate`, its load to the router."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import msgspec
from ray import serve
from ray.serve.handle import DeploymentHandle

from deploy.args import AppArgs, PoolArgs
from deploy.autoscaling import target_stats
from deploy.failures import RAY_FAILURES, as_own_error, first_line
from deploy.features import PictureFeatures
from deploy.metrics.target import EXPORT_S, TargetMetrics
from deploy.node import accelerator_type, use_threads
from deploy.spans import begin, told, trace_parent
from smart_serve.errors import ServerError, SmartServeError
from smart_serve.messages import (
    NOTHING,
    GenerateRequest,
    LoadReport,
    SpeculationPlan,
    TokenChunk,
)
from smart_serve.models.folders import resolve_model
from smart_serve.routing.prefixes import RecentPrefixes
from smart_serve.routing.shared_calibration import NEWCOMER_STEPS
from vision.image import CheckedImage

if TYPE_CHECKING:
    # torch is loaded where the engine runs, not where the application is built.
    from deploy.drafter_lease import DrafterLease
    from smart_serve.engine.loop import EngineLoop

logger = logging.getLogger("ray.serve")

REPORT_S = 0.1
"""Until the router says otherwise."""
IDLE_REPORT_S = 1.0
"""An idle replica's report says nothing new; this often shows that it lives."""
LESSON_S = 10.0
"""Between two reports that carry what was learnt of the drafter: some kilobytes."""
STOP_S = 10.0
BEAT_S = 1.0
"""A stream is never silent for longer: its reader takes silence for the loss of this replica."""


class TargetReplica:
    """Continuous batching, KV cache and tree verification of one pool's model."""

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self,
        args: AppArgs,
        pool: PoolArgs,
        router: DeploymentHandle,
        vision: DeploymentHandle,
        drafters: DeploymentHandle | None,
        secret: bytes,
    ) -> None:
        self._pool = pool
        self._router = router
        self._device_type = accelerator_type()
        self._metrics = TargetMetrics(pool.name, self._device_type)
        use_threads(pool.num_threads)
        self._loop = await asyncio.to_thread(_start_engine, args, pool)
        self._features = PictureFeatures(vision, self._loop.hidden_size)
        self._lease = _lease(drafters, secret, self._loop) if drafters is not None else None
        self._prefixes = RecentPrefixes()
        self._reporting = asyncio.create_task(self._report_for_ever())
        self._exporting = asyncio.create_task(self._export_for_ever())

    async def generate(
        self, request: GenerateRequest, images: Sequence[CheckedImage]
    ) -> AsyncGenerator[TokenChunk]:
        """The tokens as steps bring them; the last chunk carries the reason and the stats. Where
        nothing comes for `BEAT_S` there is a chunk with nothing in it, and one at first.

        `images` in the order of `request.image_spans`; their features come from a vision encoder.
        Ending the stream early frees its KV blocks. Raises `OverloadedError` on a full queue.
        """
        yield NOTHING
        self._prefixes.note(request.token_ids, request.image_spans)
        span = begin(
            "generate",
            request.trace_parent,
            request_id=request.request_id,
            pool=self._pool.name,
            device_type=self._device_type,
            prompt_tokens=len(request.token_ids),
            pictures=len(request.image_spans),
        )
        request = msgspec.structs.replace(request, trace_parent=trace_parent(span))
        async with aclosing(told(span, self._answer(request, images))) as chunks:
            async for chunk in chunks:
                if chunk.finish_reason is not None:
                    # Serve adds the id that the client's request came with.
                    logger.info("%s ended: %s", request.request_id, chunk.finish_reason)
                yield chunk

    async def _answer(
        self, request: GenerateRequest, images: Sequence[CheckedImage]
    ) -> AsyncGenerator[TokenChunk]:
        encoding = asyncio.ensure_future(self._features.of(request, images))
        try:
            while not (await asyncio.wait([encoding], timeout=BEAT_S))[0]:
                yield NOTHING
        finally:
            encoding.cancel()
        # The engine's iterator is a generator; closing it is what ends the sequence.
        chunks = cast(
            AsyncGenerator[TokenChunk], self._loop.generate(request, encoding.result(), BEAT_S)
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def blocks(self) -> dict[str, int]:
        """KV blocks: free, cached (kept for their prefix), total. Idle: free + cached == total."""
        load = self._loop.load()
        return {
            "free": load.free_blocks,
            "cached": load.cached_blocks,
            "total": load.total_blocks,
            "running": load.running,
            "waiting": load.waiting,
        }

    async def describe(self) -> dict[str, Any]:
        """Process id, pool, and the hop to the leased drafter (None: there is none)."""
        return {
            "pid": os.getpid(),
            "pool": self._pool.name,
            "device_type": self._device_type,
            "wire_ms": self._lease.wire_ms if self._lease is not None else None,
        }

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Read by Serve, for the application's autoscaling policy."""
        return target_stats(self._report(), self._pool.price_per_hour)

    def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        if not self._loop.is_healthy():
            raise ServerError("the engine's thread has ended", code="engine_dead")

    async def __del__(self) -> None:
        # Serve awaits this when it retires the replica, after its streams have been drained.
        self._reporting.cancel()
        self._exporting.cancel()
        if self._lease is not None:
            await self._lease.stop()
        await asyncio.to_thread(self._loop.stop, STOP_S)

    async def _report_for_ever(self) -> None:
        """Reports load and takes the envelope. Without a router the engine plans for itself."""
        was_busy, due, wait_s, lesson_due = True, 0.0, REPORT_S, 0.0
        while True:
            report, now = self._report(), asyncio.get_running_loop().time()
            busy = report.running + report.waiting > 0
            if busy or was_busy or now >= due:
                was_busy, due = busy, now + IDLE_REPORT_S
                if now >= lesson_due or report.learnt_steps < NEWCOMER_STEPS:
                    lesson_due = now + LESSON_S
                    counts = self._loop.calibration_counts()
                    report = msgspec.structs.replace(report, calibration=counts)
                try:
                    plan = await self._tell(report)
                    self._loop.set_plan(plan)
                    wait_s = plan.report_every_ms / 1e3
                    self._metrics.note_plan(plan)
                except (*RAY_FAILURES, SmartServeError, TimeoutError) as error:
                    logger.warning("the router is away: %s", first_line(error))
                    await asyncio.sleep(IDLE_REPORT_S)
            await asyncio.sleep(wait_s)

    async def _export_for_ever(self) -> None:
        """Metrics; by itself, for they matter most while the router does not answer."""
        while True:
            self._metrics.export(self._loop.load(), self._lease, self._features.num_kept)
            await asyncio.sleep(EXPORT_S)

    async def _tell(self, report: LoadReport) -> SpeculationPlan:
        """Tells every router replica, so that each knows the whole cluster; the newest envelope
        counts. Raises `SmartServeError`, and what Ray raises, if none answered."""
        told = self._router.broadcast("report", report)
        answers = await told.results_async(timeout_s=IDLE_REPORT_S, return_exceptions=True)
        plans = [answer for answer in answers if isinstance(answer, SpeculationPlan)]
        if not plans:
            # Over gRPC whatever a router failed with arrives as it is.
            late = isinstance(answers[0], TimeoutError)
            raise answers[0] if late else as_own_error(answers[0])
        return max(plans, key=lambda plan: plan.epoch)

    def _report(self) -> LoadReport:
        load = self._loop.load()
        return LoadReport(
            replica_id=serve.get_replica_context().replica_id.unique_id,
            pool=self._pool.name,
            device_type=self._device_type,
            running=load.running,
            waiting=load.waiting,
            # What is kept for its prefix is given up as soon as it is needed.
            free_blocks=load.free_blocks + load.cached_blocks,
            total_blocks=load.total_blocks,
            tokens_per_s=load.tokens_per_s,
            step_ms=load.step_ms,
            draft_ms=load.draft_ms,
            verify_ms=load.verify_ms,
            accepted_per_step=load.accepted_per_step,
            nodes_per_step=load.nodes_per_step,
            plan_epoch=load.plan_epoch,
            max_running=load.max_running,
            block_tokens=load.block_tokens,
            batch=load.batch,
            token_ms=load.token_ms,
            decode_step_ms=load.decode_step_ms,
            predicted_step_ms=load.predicted_step_ms,
            plain_steps=load.plain_steps,
            prompt_token_ms=load.prompt_token_ms,
            drafter_id=self._lease.drafter_id if self._lease is not None else None,
            prefixes=self._prefixes.names(),
            learnt_steps=load.learnt_steps,
        )


def _start_engine(args: AppArgs, pool: PoolArgs) -> EngineLoop:
    """Loads the model, measures its costs and starts its thread: seconds to minutes."""
    from smart_serve.drafters.load import load_drafter
    from smart_serve.engine.build import build_engine
    from smart_serve.engine.loop import EngineLoop

    folder, config = resolve_model(args.model), args.engine_config(pool)
    # A remote drafter comes with its lease.
    colocated = args.drafter is not None and not args.drafts_remotely
    drafter = load_drafter(str(args.drafter), folder, config) if colocated else None
    engine = build_engine(folder, config, drafter, progress=False)
    loop = EngineLoop(engine, args.parsed_limits().max_events_per_s)
    loop.start()
    return loop


def _lease(drafters: DeploymentHandle, secret: bytes, engine: EngineLoop) -> DrafterLease:
    from deploy.drafter_lease import DrafterLease

    return DrafterLease(drafters, secret, engine)
