"""Server-sent events: one JSON value a line, the event's id, then an empty line."""

from __future__ import annotations

import msgspec

DONE = b"data: [DONE]\n\n"
"""Ends a stream that ended well; a stream without it was cut."""


def sse_event(value: msgspec.Struct, event_id: str) -> bytes:
    """JSON escapes line breaks, so one `data:` line is always enough."""
    return b"data: " + msgspec.json.encode(value) + b"\nid: " + event_id.encode() + b"\n\n"
