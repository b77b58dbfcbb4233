"""The answers' shapes: whole completion, streamed chunk, models, tokens."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from smart_serve.openai.logprobs import ChatLogprobs, TextLogprobs
from smart_serve.openai.trace import SpeculationNews
from smart_serve.openai.usage import Usage

AnswerEnd = Literal["stop", "length"]
StreamedUsage = Usage | UnsetType | None
"""Left out unless asked for; then null in every chunk but the last, as the API documents."""


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


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the `n` answers."""

    index: int
    message: AssistantMessage
    finish_reason: AnswerEnd
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a chat that is not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """News of a streamed answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """As ChatChoice, in a stream."""

    index: int
    delta: Delta
    finish_reason: AnswerEnd | None = None
    logprobs: ChatLogprobs | None = None
    speculation: SpeculationNews | UnsetType = UNSET
    """Only if asked for."""


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChatChunkChoice, ...]
    usage: StreamedUsage = UNSET


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A text completion, whole or the news of one; only its last piece has a finish reason."""

    index: int
    text: str
    finish_reason: AnswerEnd | None = None
    logprobs: TextLogprobs | None = None
    speculation: SpeculationNews | UnsetType = UNSET
    """Only in a stream, if asked for."""


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a text completion, and each event of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    usage: StreamedUsage = UNSET


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "smart-serve"
    max_model_len: int
    """Tokens of prompt and answer together."""


class ModelList(msgspec.Struct, frozen=True):
    """The answer of GET /v1/models."""

    data: tuple[ModelCard, ...]
    object: Literal["list"] = "list"


class Tokens(msgspec.Struct, frozen=True):
    """The answer of POST /tokenize: what the target would read, image tokens included."""

    tokens: tuple[int, ...]
    count: int
    max_model_len: int


class Detokenized(msgspec.Struct, frozen=True):
    """The answer of POST /detokenize; special tokens have no text."""

    prompt: str
