"""The answers' shapes: whole completion, streamed chunk, list of models."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from smart_serve.openai.usage import Usage

AnswerEnd = Literal["stop", "length"]


class AnswerHead(msgspec.Struct, frozen=True):
    """What all parts of one answer share."""

    id: str
    model: str
    created: int
    """Unix time in seconds."""


class AssistantMessage(msgspec.Struct, frozen=True):
    """The answer's text."""

    content: str
    role: Literal["assistant"] = "assistant"


class Choice(msgspec.Struct, frozen=True):
    """The only choice: `n` is 1."""

    message: AssistantMessage
    finish_reason: AnswerEnd
    index: int = 0
    logprobs: None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a request that is not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """News of a streamed answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    """As Choice, in a stream."""

    delta: Delta
    finish_reason: AnswerEnd | None = None
    index: int = 0
    logprobs: None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | UnsetType | None = UNSET
    """Left out unless asked for; then null in every chunk but the last, as the API documents."""


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "smart-serve"


class ModelList(msgspec.Struct, frozen=True):
    """The answer of GET /v1/models."""

    data: tuple[ModelCard, ...]
    object: Literal["list"] = "list"
