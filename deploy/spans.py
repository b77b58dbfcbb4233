"""OpenTelemetry spans of our own: ingress, vision encoder, target and drafter under one request.

Serve's `tracing_config` says where they go and which requests have any; without it everything here
is a no-op. A span tells counts and times, never a request's content. Our messages carry the trace
from process to process themselves: the step channel is not Serve's, and Serve's HTTP proxy (2.60)
does not read `tracing_config`, so that a client's own trace would end there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import msgspec
from opentelemetry import context, trace
from opentelemetry.trace import INVALID_SPAN, Span, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from smart_serve.messages import TokenChunk

_TRACER = trace.get_tracer("smart-serve")
_W3C = TraceContextTextMapPropagator()
_TOLD = (
    *("completion_tokens", "cached_tokens", "target_steps", "drafted_tokens", "accepted_tokens"),
    *("queue_ms", "prefill_ms", "decode_ms", "draft_ms", "verify_ms"),
)


def begin(name: str, trace_parent: str | None = None, **attributes: str | int | float) -> Span:
    """A span under `trace_parent` (as the HTTP header of this name), by default under the current
    one; a no-op where there is neither, for what has no beginning would be half a trace.

    It does not become the current one: a stream may begin and end in different contexts.
    """
    above = _context(trace_parent) if trace_parent else context.get_current()
    if not trace.get_current_span(above).get_span_context().is_valid:
        return INVALID_SPAN
    return _TRACER.start_span(name, above, attributes=attributes)


def trace_parent(span: Span) -> str | None:
    """What another process goes on from; None where nobody records the span."""
    if not span.is_recording():
        return None
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span))
    return carrier["traceparent"]


@contextmanager
def under(client: str | None) -> Iterator[None]:
    """Within it a client's `traceparent` is current, unless Serve is in the same trace already."""
    above = _context(client or "")
    wanted = trace.get_current_span(above).get_span_context()
    if not wanted.is_valid or wanted.trace_id == _current().trace_id:
        yield
        return
    token = context.attach(above)
    try:
        yield
    finally:
        context.detach(token)


async def told(span: Span, chunks: AsyncGenerator[TokenChunk]) -> AsyncGenerator[TokenChunk]:
    """`chunks`, with which `span` ends: how, and what speculation did, is what the last one says.

    Ending it early ends them too.
    """
    try:
        async for chunk in chunks:
            if chunk.finish_reason is not None:
                # Now, for a reader that has the last chunk may end this without asking for more.
                _tell(span, chunk)
            yield chunk
    finally:
        await chunks.aclose()
        span.end()


def _tell(span: Span, last: TokenChunk) -> None:
    if not span.is_recording():
        return
    span.set_attribute("finish_reason", last.finish_reason or "")
    if last.finish_reason == "error":
        span.set_status(StatusCode.ERROR)
    if last.stats is not None:
        stats = msgspec.to_builtins(last.stats)
        span.set_attributes({name: stats[name] for name in _TOLD})


def _context(header: str) -> context.Context:
    """Malformed: one without a span."""
    return _W3C.extract({"traceparent": header}, context.Context())


def _current() -> trace.SpanContext:
    return trace.get_current_span().get_span_context()
