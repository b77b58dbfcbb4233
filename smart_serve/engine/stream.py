"""One request's chunks on their way from the engine's thread to an event loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict, deque
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from contextlib import suppress

import msgspec

from smart_serve.engine.sequence import Sequence
from smart_serve.messages import GenerateRequest, TokenChunk

_LOG = logging.getLogger(__name__)


class ChunkStream:
    """Written by the engine's thread, read by the event loop in which it was made.

    A reader may take its time: what has come meanwhile is then one chunk. Whoever must see each
    step by itself gets one chunk a step: requests with a trace, and those with stop strings, whose
    answers may end within a chunk.
    """

    def __init__(self, request: GenerateRequest) -> None:
        self.sequence: Sequence | None = None
        """Set in the engine's thread once the request is admitted."""
        self._loop = asyncio.get_running_loop()
        self._joins = not (request.trace or request.sampling.stop)
        self._chunks: deque[TokenChunk] = deque()
        self._failure: Exception | None = None
        self._came = asyncio.Event()
        self._ended = asyncio.Event()
        self._taken_s = float("-inf")

    def put(self, item: TokenChunk | Exception) -> None:
        """From the engine's thread."""
        self.put_each([(self, item)])

    @staticmethod
    def put_each(items: Iterable[tuple[ChunkStream, TokenChunk | Exception]]) -> None:
        """From the engine's thread: what a step has for each stream. An event loop is called once
        for all of its streams, since each call wakes it."""
        by_loop = defaultdict(list)
        for stream, item in items:
            by_loop[stream._loop].append((stream, item))
        for loop, own in by_loop.items():
            try:
                loop.call_soon_threadsafe(_note_each, own)
            except RuntimeError:
                _LOG.debug("the streams' event loop is closed; their chunks are dropped")

    async def take(self, every_s: float = 0.0) -> TokenChunk:
        """What has come since it was last asked, once anything has; not sooner than `every_s` after
        that, unless the answer is complete. Raises the exception that was put."""
        wait_s = self._taken_s + every_s - self._loop.time()
        if self._joins and wait_s > 0.0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._ended.wait()
        await self._came.wait()
        if not self._chunks:
            assert self._failure is not None
            raise self._failure
        count = len(self._chunks) if self._joins else 1
        taken = [self._chunks.popleft() for _ in range(count)]
        if not self._chunks and self._failure is None:
            self._came.clear()
        self._taken_s = self._loop.time()
        return joined(taken)

    def _note(self, item: TokenChunk | Exception) -> None:
        if isinstance(item, Exception):
            self._failure = item
        else:
            self._chunks.append(item)
        if isinstance(item, Exception) or item.finish_reason is not None:
            self._ended.set()
        self._came.set()


def _note_each(items: Seq[tuple[ChunkStream, TokenChunk | Exception]]) -> None:
    """In the streams' event loop."""
    for stream, item in items:
        stream._note(item)


def joined(chunks: Seq[TokenChunk]) -> TokenChunk:
    """Chunks of successive steps of one request as one; reason and stats are the last one's."""
    if len(chunks) == 1:
        return chunks[0]
    chain = itertools.chain.from_iterable
    return msgspec.structs.replace(
        chunks[-1],
        token_ids=tuple(chain(one.token_ids for one in chunks)),
        num_accepted=sum(one.num_accepted for one in chunks),
        num_steps=sum(one.num_steps for one in chunks),
        logprobs=tuple(chain(one.logprobs for one in chunks)),
    )
