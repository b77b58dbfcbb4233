"""Request bodies: what is accepted, and nothing else.

An accepted field changes the answer or describes the request; every other field is refused by
name, so that no option is silently ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from smart_serve.messages import MAX_LOGPROBS


def _told(**schema: object) -> msgspec.Meta:
    """Bounds for the OpenAPI document alone: they are checked with the meaning, in our words."""
    return msgspec.Meta(extra_json_schema=dict(schema))


_Penalty = Annotated[float, _told(minimum=-2, maximum=2)]
_Bias = Annotated[float, _told(minimum=-100, maximum=100)]
_Positive = Annotated[int, _told(minimum=1)]
_TopCount = Annotated[int, _told(minimum=0, maximum=MAX_LOGPROBS)]
_Seed = Annotated[int, _told(minimum=-(2**63), maximum=2**63 - 1)]
_TokenId = Annotated[int, _told(minimum=0)]
_StopString = Annotated[str, _told(minLength=1)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class TextContent(_Strict, frozen=True, tag_field="type", tag="text"):
    """A piece of text."""

    text: str


class ImageUrl(_Strict, frozen=True):
    """A picture: a data: URL, or an https: URL of a host that the operator allows."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"
    """Accepted for compatibility: the model's own processor decides the resolution."""


class ImageContent(_Strict, frozen=True, tag_field="type", tag="image_url"):
    """A picture."""

    image_url: ImageUrl


class Message(_Strict, frozen=True):
    """One turn of the conversation; `developer` is the API's newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextContent | ImageContent]


class StreamOptions(_Strict, frozen=True):
    """Options of a streamed answer."""

    include_usage: bool = False


class SpeculationOptions(_Strict, frozen=True):
    """Our extension: how this request's answer is drafted. It changes the speed alone; with another
    `verification` than "match" a seed's tokens are others, of the same distribution."""

    policy: str | None = None
    verification: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """Only `{"type": "text"}` is served; a JSON schema beside another type is read and refused."""

    type: str


class GenerationOptions(_Strict, frozen=True):
    """What both kinds of completion share; absent or null: the API's own default."""

    model: str
    max_tokens: _Positive | None = None
    temperature: Annotated[float, _told(minimum=0, maximum=2)] | None = None
    top_p: Annotated[float, _told(exclusiveMinimum=0, maximum=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: Annotated[dict[int, _Bias], _told(propertyNames={"pattern": "^[0-9]+$"})] | None = (
        None
    )
    """By token id."""
    top_k: Annotated[int, _told(minimum=0)] | None = None
    min_p: Annotated[float, _told(minimum=0, maximum=1)] | None = None
    repetition_penalty: Annotated[float, _told(exclusiveMinimum=0, maximum=2)] | None = None
    ignore_eos: bool | None = None
    """These four are beyond OpenAI's API, as other servers have them; see `SamplingParams`."""
    seed: _Seed | None = None
    """With n > 1, answer i has the seed plus i."""
    stop: _StopString | list[_StopString] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: _Positive | None = None
    user: str | None = None
    speculation: SpeculationOptions | None = None


class ChatRequest(GenerationOptions, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], _told(minItems=1)]
    max_completion_tokens: _Positive | None = None
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    top_logprobs: _TopCount | None = None
    """0 to 20 rivals of each token; needs `logprobs`."""
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = None


class CompletionRequest(GenerationOptions, frozen=True, kw_only=True):
    """The body of POST /v1/completions: text, token ids, or a list of either."""

    prompt: (
        Annotated[str, _told(minLength=1)]
        | Annotated[list[str | _TokenId | list[_TokenId]], _told(minItems=1)]
    )
    logprobs: _TopCount | None = None
    """0 to 20 rivals of each token."""


class TokenizeRequest(_Strict, frozen=True):
    """The body of POST /tokenize: a conversation, or plain text."""

    model: str
    messages: list[Message] | None = None
    prompt: str | None = None


class DetokenizeRequest(_Strict, frozen=True):
    """The body of POST /detokenize."""

    model: str
    tokens: list[_TokenId]
