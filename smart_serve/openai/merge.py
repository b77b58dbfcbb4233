"""Several streams as one, in the order of arrival."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def merged(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[T]:
    """Items of all `streams`. The first error of one ends all; each is closed at the end."""
    arrived: asyncio.Queue[T | BaseException | None] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[T]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    arrived.put_nowait(item)
        except Exception as error:  # raised where the items are read
            arrived.put_nowait(error)
        else:
            arrived.put_nowait(None)

    # Not a TaskGroup: a generator may be resumed in one task and closed in another.
    pumps = [asyncio.create_task(pump(stream)) for stream in streams]
    running = len(pumps)
    try:
        while running:
            item = await arrived.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
