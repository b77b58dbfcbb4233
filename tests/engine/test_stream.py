"""Chunks on their way from the engine's thread to an event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from smart_serve.engine.stream import ChunkStream
from smart_serve.errors import ServerError
from smart_serve.messages import GenerateRequest, RequestStats, SamplingParams, TokenChunk

SOON_S = 30.0
NEVER_S = 1e6


def request(trace: bool = False, stop: tuple[str, ...] = ()) -> GenerateRequest:
    return GenerateRequest(
        request_id="one", token_ids=(1,), sampling=SamplingParams(stop=stop), trace=trace
    )


def step(*tokens: int, end: bool = False) -> TokenChunk:
    return TokenChunk(
        token_ids=tokens,
        num_accepted=len(tokens) - 1,
        finish_reason="length" if end else None,
        stats=RequestStats(completion_tokens=6) if end else None,
    )


async def test_what_comes_while_the_reader_waits_is_one_chunk() -> None:
    stream = ChunkStream(request())
    stream.put(step(1))
    assert await stream.take(0.05) == step(1)
    for one in (step(2, 3), step(4), step(5, 6)):
        stream.put(one)
    joined = await stream.take(0.05)
    assert (joined.token_ids, joined.num_accepted, joined.num_steps) == ((2, 3, 4, 5, 6), 2, 3)


@pytest.mark.parametrize("fields", [{"trace": True}, {"stop": ("end",)}])
async def test_who_must_see_each_step_does(fields: dict[str, Any]) -> None:
    stream = ChunkStream(request(**fields))
    steps = [step(1), step(2), step(3, end=True)]
    for chunk in steps:
        stream.put(chunk)
    assert [await stream.take(NEVER_S) for _ in steps] == steps


async def test_the_end_is_not_kept_waiting() -> None:
    stream = ChunkStream(request())
    stream.put(step(1))
    await stream.take()
    stream.put(step(2))
    waiting = asyncio.create_task(stream.take(NEVER_S))
    await asyncio.sleep(0.05)
    # The control: without its end the answer is kept.
    assert not waiting.done()
    stream.put(step(3, end=True))
    joined = await asyncio.wait_for(waiting, SOON_S)
    assert (joined.token_ids, joined.finish_reason) == ((2, 3), "length")
    assert joined.stats == RequestStats(completion_tokens=6)


async def test_a_failure_comes_after_what_came_before_it() -> None:
    stream = ChunkStream(request())
    stream.put(step(1))
    stream.put(ServerError("the engine stopped"))
    assert await stream.take(NEVER_S) == step(1)
    for _ in range(2):
        with pytest.raises(ServerError, match="the engine stopped"):
            await asyncio.wait_for(stream.take(NEVER_S), SOON_S)


async def test_a_step_wakes_each_event_loop_once() -> None:
    """However many streams it has; and one that is closed keeps nothing from the others."""
    here = asyncio.get_running_loop()
    streams = [ChunkStream(request()) for _ in range(3)]
    woken: list[object] = []
    real = here.call_soon_threadsafe

    def counted(callback: Any, *args: Any) -> Any:
        woken.append(callback)
        return real(callback, *args)

    async def elsewhere() -> ChunkStream:
        return ChunkStream(request())

    gone = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    here.call_soon_threadsafe = counted  # type: ignore[method-assign]
    try:
        ChunkStream.put_each([(gone, step(9)), *((stream, step(1, 2)) for stream in streams)])
    finally:
        here.call_soon_threadsafe = real  # type: ignore[method-assign]
    assert len(woken) == 1
    async with asyncio.timeout(SOON_S):
        assert [await stream.take() for stream in streams] == [step(1, 2)] * 3
