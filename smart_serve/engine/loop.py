"""The engine in its own thread, behind an asynchronous face."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from smart_serve.drafters.protocol import Drafter
from smart_serve.engine.engine import Engine
from smart_serve.engine.load import EngineLoad, StepRates
from smart_serve.engine.stream import ChunkStream
from smart_serve.errors import ServerError
from smart_serve.messages import (
    NOTHING,
    CalibrationCounts,
    GenerateRequest,
    SpeculationPlan,
    TokenChunk,
)

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
LONGEST_S = 0.1
"""Ten chunks a second still read as a flow."""
IDLE_WAIT_S = 0.5
"""How long an idle loop sleeps before it looks again whether it shall stop."""


class EngineLoop:
    """Owns an engine's thread. Everything that touches the engine runs there, between steps."""

    def __init__(self, engine: Engine, chunks_per_s: float = math.inf) -> None:
        """`chunks_per_s`: of all streams together, for each of them has its price outside."""
        self._engine = engine
        self._chunks_per_s = chunks_per_s
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[int, ChunkStream] = {}
        self._stopping = threading.Event()
        self._ended = threading.Event()
        """The thread takes no command any more; whoever sends one must see to it."""
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._last_beat_s = time.monotonic()
        self._rates = StepRates()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread after the step it is in; requests still running get an error."""
        self._stopping.set()
        self._commands.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def is_healthy(self, max_silence_s: float = 60.0) -> bool:
        """The thread lives, and finished a step (or was idle) lately."""
        silence = time.monotonic() - self._last_beat_s
        return self._thread.is_alive() and self._failure is None and silence < max_silence_s

    @property
    def max_context(self) -> int:
        return self._engine.max_context

    @property
    def hidden_size(self) -> int:
        """Of the model, and so of a picture's features."""
        return self._engine.model.hidden_size

    async def generate(
        self,
        request: GenerateRequest,
        features: Seq[NDArray[np.float32]] = (),
        beat_s: float | None = None,
    ) -> AsyncIterator[TokenChunk]:
        """The request's chunks; the last one has a reason. Where there is none for `beat_s`,
        `NOTHING` (None: there is only silence). A chunk is of one step, or of several where there
        would be too many chunks: then there is one every `LONGEST_S` at least.

        Closing the iterator early frees the request's KV blocks before the next step. Raises
        `ClientError`, `OverloadedError`, and `ServerError` if the engine stops.
        """
        stream = ChunkStream(request)
        admitted = asyncio.wrap_future(self._call(lambda: self._add(request, features, stream)))
        try:
            while not (await asyncio.wait([admitted], timeout=beat_s))[0]:
                yield NOTHING
            admitted.result()
            while True:
                try:
                    async with asyncio.timeout(beat_s):
                        item = await stream.take(self._every_s())
                except TimeoutError:
                    item = NOTHING
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            admitted.cancel()
            # Commands run in order: this finds the sequence even if the wait for it was cancelled.
            self._commands.put(lambda: self._abort(stream))

    async def call(self, action: Callable[[Engine], None]) -> None:
        """Run `action` on the engine between two steps."""
        await asyncio.wrap_future(self._call(lambda: action(self._engine)))

    def set_plan(self, plan: SpeculationPlan) -> None:
        """The router's envelope, from the next step on."""
        self._commands.put(lambda: self._engine.set_plan(plan))

    def set_drafter(self, drafter: Drafter | None) -> None:
        """Another drafter, or none, from the next step on."""
        self._commands.put(lambda: self._engine.set_drafter(drafter))

    def load(self) -> EngineLoad:
        """A snapshot; may be read from any thread."""
        return self._rates.load(self._engine)

    def calibration_counts(self) -> CalibrationCounts:
        """What has been learnt of the drafter; may be read from any thread."""
        return self._engine.controller.calibration_counts()

    def _every_s(self) -> float:
        """Between two chunks of a stream."""
        return min(LONGEST_S, len(self._streams) / self._chunks_per_s)

    def _call(self, action: Callable[[], T]) -> Future[T]:
        """Run `action` in the engine's thread."""
        future: Future[T] = Future()
        if self._failure is not None or self._stopping.is_set():
            future.set_exception(_not_running())
            return future

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            if self._ended.is_set():
                future.set_exception(_not_running())
                return
            try:
                future.set_result(action())
            except Exception as error:  # the caller's: it is raised there
                future.set_exception(error)

        self._commands.put(run)
        if self._ended.is_set():
            self._run_waiting()
        return future

    def _add(
        self, request: GenerateRequest, features: Seq[NDArray[np.float32]], stream: ChunkStream
    ) -> None:
        stream.sequence = self._engine.add(request, features)
        self._streams[stream.sequence.id] = stream

    def _abort(self, stream: ChunkStream) -> None:
        if stream.sequence is not None:
            self._streams.pop(stream.sequence.id, None)
            self._engine.abort(stream.sequence)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._run_commands()
                self._last_beat_s = time.monotonic()
                if self._engine.scheduler.has_work:
                    self._step()
        except Exception as error:
            _LOG.exception("the engine stopped")
            self._failure = error
        finally:
            # In this order: a command sent before the flag is answered here, a later one by its
            # sender.
            self._ended.set()
            self._run_waiting()
            self._end_streams()

    def _run_commands(self) -> None:
        """All that wait; when there is nothing to step for, wait for one."""
        try:
            idle = not self._engine.scheduler.has_work
            self._commands.get(block=idle, timeout=IDLE_WAIT_S if idle else None)()
        except queue.Empty:
            return
        self._run_waiting()

    def _run_waiting(self) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command()

    def _step(self) -> None:
        emissions = self._engine.step()
        num_tokens = sum(len(emission.token_ids) for emission in emissions)
        self._rates.add(self._engine.last_step, num_tokens, self._engine.last_price)
        with_streams = ((self._streams.get(one.sequence.id), one.chunk) for one in emissions)
        ChunkStream.put_each(
            (stream, chunk) for stream, chunk in with_streams if stream and chunk is not None
        )

    def _end_streams(self) -> None:
        for stream in list(self._streams.values()):
            stream.put(ServerError("the engine stopped", code="engine_stopped"))
        self._streams.clear()


def _not_running() -> ServerError:
    return ServerError("the engine is not running", code="engine_stopped")
