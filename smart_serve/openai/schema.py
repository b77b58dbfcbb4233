"""The request of POST /v1/chat/completions: what is accepted, and nothing else.

An accepted field changes the answer or describes the request; every other field is refused by
name, so that no option is silently ignored.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class TextContent(_Strict, frozen=True, tag_field="type", tag="text"):
    """A piece of text."""

    text: str


class ImageUrl(_Strict, frozen=True):
    """A picture as a data: URL."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"
    """Accepted for compatibility: LLaVA sees every picture at one resolution."""


class ImageContent(_Strict, frozen=True, tag_field="type", tag="image_url"):
    """A picture."""

    image_url: ImageUrl


Content = str | list[TextContent | ImageContent]


class Message(_Strict, frozen=True):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: Content


class StreamOptions(_Strict, frozen=True):
    """Options of a streamed answer."""

    include_usage: bool = False


class SpeculationOptions(_Strict, frozen=True):
    """Our extension: how this request's answer is drafted."""

    policy: str | None = None


class ChatRequest(_Strict, frozen=True):
    """The body as the client sent it; defaults are those of the OpenAI API."""

    model: str
    messages: list[Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """Extension; 0: no limit."""
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    speculation: SpeculationOptions | None = None
