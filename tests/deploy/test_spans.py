"""Spans where nobody records any, and where a client's trace begins and ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from deploy.spans import begin, told, trace_parent, under
from deploy.step_channel.spans import DraftSpans
from smart_serve.messages import RequestStats, TokenChunk

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def current() -> int:
    return trace.get_current_span().get_span_context().trace_id


def test_without_a_trace_nothing_is_begun() -> None:
    span = begin("answer", prompt_tokens=3)
    assert span is trace.INVALID_SPAN
    assert trace_parent(span) is None
    span.end()
    # What was never opened may be closed.
    DraftSpans().close([1, 2])


def test_a_clients_trace_holds_within_its_request_alone() -> None:
    with under(PARENT):
        assert current() == int(TRACE, 16)
        assert begin("answer").get_span_context().trace_id == int(TRACE, 16)
        with under(PARENT):
            assert current() == int(TRACE, 16)
    assert current() == 0


@pytest.mark.parametrize(
    "header", [None, "", "00", PARENT[:-4], f"00-{'0' * 32}-b7ad6b7169203331-01", "\u00e9" * 55]
)
def test_a_malformed_header_is_no_trace(header: str | None) -> None:
    with under(header):
        assert current() == 0


async def answer() -> AsyncGenerator[TokenChunk]:
    yield TokenChunk(token_ids=(1, 2))
    yield TokenChunk(token_ids=(3,), finish_reason="stop", stats=RequestStats(completion_tokens=3))


@pytest.mark.parametrize("reads", [1, 2, 3])
async def test_a_span_tells_how_an_answer_ended_that_is_read_no_further(reads: int) -> None:
    span = TracerProvider().get_tracer("test").start_span("generate")
    assert isinstance(span, ReadableSpan)
    chunks = answer()
    async with aclosing(told(span, chunks)) as read:
        for _ in range(reads):
            await anext(read, None)
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    assert span.end_time is not None
    attributes = dict(span.attributes or {})
    if reads == 1:
        assert attributes == {}
    else:
        assert attributes["finish_reason"] == "stop"
        assert attributes["completion_tokens"] == 3
