"""The engine behind its asynchronous face: streams, cancellation, overload, and the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from engine_rig import Case, make_engine, random_feature_drafter

from smart_serve.engine.engine import Engine
from smart_serve.engine.loop import EngineLoop
from smart_serve.errors import ClientError, OverloadedError, ServerError
from smart_serve.messages import NOTHING, GenerateRequest, SamplingParams, TokenChunk

TIMEOUT_S = 20.0


class Gate:
    """Holds the engine's steps until it is opened, so that tests know what is running."""

    def __init__(self, engine: Engine) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        real = engine.step

        def step() -> list[object]:
            self.entered.set()
            assert self.open.wait(TIMEOUT_S)
            return real()

        engine.step = step


@pytest.fixture
def engine(small_llava: Path) -> Engine:
    return make_engine(small_llava, random_feature_drafter(small_llava), max_waiting=3)


@pytest.fixture
def loop(engine: Engine) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine)
    loop.start()
    yield loop
    loop.stop()
    assert not loop.is_healthy()


def request_of(case: Case, max_tokens: int = 20) -> GenerateRequest:
    return case.request(SamplingParams(max_tokens=max_tokens))


def stream(loop: EngineLoop, case: Case, max_tokens: int = 20) -> AsyncIterator[TokenChunk]:
    return loop.generate(request_of(case, max_tokens), case.features)


async def collect(chunks: AsyncIterator[TokenChunk]) -> list[TokenChunk]:
    return [chunk async for chunk in chunks]


async def settled(loop: EngineLoop) -> None:
    """After the commands sent so far."""
    await loop.call(lambda engine: None)


async def test_streams_in_parallel_are_the_answers(
    loop: EngineLoop, engine: Engine, llava_cases: list[Case]
) -> None:
    cases = llava_cases[:3]
    everything = await asyncio.wait_for(
        asyncio.gather(*(collect(stream(loop, case)) for case in cases)), TIMEOUT_S
    )
    for case, chunks in zip(cases, everything, strict=True):
        assert tuple(token for chunk in chunks for token in chunk.token_ids) == case.answer
        assert [chunk.finish_reason is None for chunk in chunks[:-1]] == [True] * (len(chunks) - 1)
        stats = chunks[-1].stats
        assert stats is not None
        assert stats.completion_tokens == len(case.answer)
        # Not `len(chunks)`: the steps that a busy reader finds waiting come as one chunk.
        assert stats.target_steps == sum(one.num_steps for one in chunks) == len(stats.tree_sizes)
    await settled(loop)
    engine.scheduler.pool.check_idle()
    assert loop.is_healthy()
    assert loop.load().running == 0


async def test_a_stream_that_waits_shows_that_it_lives(
    loop: EngineLoop, engine: Engine, llava_cases: list[Case]
) -> None:
    gate = Gate(engine)
    case, other = llava_cases[:2]
    silent = asyncio.create_task(collect(stream(loop, case)))
    assert await asyncio.to_thread(gate.entered.wait, TIMEOUT_S)
    # While its admission waits for the step to end, and while its first token does.
    beating = loop.generate(request_of(other), other.features, beat_s=0.01)
    beats = [await anext(beating) for _ in range(3)]
    assert beats == [NOTHING] * 3
    gate.open.set()
    chunks = [chunk for chunk in await collect(beating) if chunk != NOTHING]
    assert sum(len(chunk.token_ids) for chunk in chunks) == chunks[-1].stats.completion_tokens
    # Nobody asked this one for beats.
    assert NOTHING not in await silent


async def test_closing_a_stream_early_frees_its_blocks_before_the_next_step(
    loop: EngineLoop, engine: Engine, llava_cases: list[Case]
) -> None:
    chunks = stream(loop, llava_cases[0], max_tokens=400)
    await anext(chunks)
    assert engine.scheduler.running
    await chunks.aclose()
    await settled(loop)
    assert not engine.scheduler.has_work
    engine.scheduler.pool.check_idle()


async def test_cancelling_while_queued_leaves_nothing(
    loop: EngineLoop, engine: Engine, llava_cases: list[Case]
) -> None:
    gate = Gate(engine)
    first = asyncio.create_task(collect(stream(loop, llava_cases[0])))
    await asyncio.to_thread(gate.entered.wait, TIMEOUT_S)
    # The engine's thread is in a step: this request's command has not even run.
    queued = asyncio.create_task(collect(stream(loop, llava_cases[1])))
    await asyncio.sleep(0.01)
    queued.cancel()
    await asyncio.gather(queued, return_exceptions=True)
    assert queued.cancelled()
    gate.open.set()
    await asyncio.wait_for(first, TIMEOUT_S)
    await settled(loop)
    assert not engine.scheduler.has_work
    engine.scheduler.pool.check_idle()


async def test_overload_and_bad_requests_are_raised_and_harm_no_one(
    loop: EngineLoop, engine: Engine, llava_cases: list[Case]
) -> None:
    gate = Gate(engine)
    first = asyncio.create_task(collect(stream(loop, llava_cases[0])))
    await asyncio.to_thread(gate.entered.wait, TIMEOUT_S)
    others = [asyncio.create_task(collect(stream(loop, case))) for case in llava_cases[:6]]
    bad = GenerateRequest(request_id="bad", token_ids=())
    refused = asyncio.create_task(collect(loop.generate(bad)))
    await asyncio.sleep(0.01)
    gate.open.set()
    results = await asyncio.wait_for(
        asyncio.gather(first, *others, refused, return_exceptions=True), TIMEOUT_S
    )
    assert isinstance(results[-1], ClientError)
    # The first was admitted by the step it waited in front of or still counts as waiting.
    overloaded = [r for r in results if isinstance(r, OverloadedError)]
    assert len(overloaded) in (3, 4)
    assert sum(isinstance(r, list) for r in results) == 7 - len(overloaded)


async def test_stop_ends_running_and_queued_streams_with_an_error(
    engine: Engine, llava_cases: list[Case]
) -> None:
    loop = EngineLoop(engine)
    loop.start()
    gate = Gate(engine)
    running = asyncio.create_task(collect(stream(loop, llava_cases[0])))
    await asyncio.to_thread(gate.entered.wait, TIMEOUT_S)
    queued = asyncio.create_task(collect(stream(loop, llava_cases[1])))
    await asyncio.sleep(0.01)
    stopping = asyncio.create_task(asyncio.to_thread(loop.stop))
    await asyncio.sleep(0.01)
    gate.open.set()
    await stopping
    late = asyncio.create_task(collect(stream(loop, llava_cases[2])))
    for task in (running, queued, late):
        with pytest.raises(ServerError) as caught:
            await asyncio.wait_for(task, 5.0)
        assert caught.value.code == "engine_stopped"


async def test_a_step_that_raises_ends_the_streams_and_is_seen_to(
    engine: Engine, llava_cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[object]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, "step", broken)
    loop = EngineLoop(engine)
    loop.start()
    with pytest.raises(ServerError, match="stopped"):
        await asyncio.wait_for(collect(stream(loop, llava_cases[0])), TIMEOUT_S)
    await asyncio.to_thread(loop._thread.join, TIMEOUT_S)
    assert not loop.is_healthy()
    with pytest.raises(ServerError, match="not running"):
        await collect(stream(loop, llava_cases[0]))


async def test_where_chunks_are_dear_steps_share_them(
    engine: Engine, llava_cases: list[Case]
) -> None:
    loop = EngineLoop(engine, chunks_per_s=1e-3)
    loop.start()
    try:
        chunks = await asyncio.wait_for(collect(stream(loop, llava_cases[0])), TIMEOUT_S)
    finally:
        loop.stop()
    assert tuple(token for one in chunks for token in one.token_ids) == llava_cases[0].answer
    stats = chunks[-1].stats
    assert stats is not None
    assert sum(one.num_steps for one in chunks) > len(chunks)
    assert sum(one.num_accepted for one in chunks) == stats.accepted_tokens
