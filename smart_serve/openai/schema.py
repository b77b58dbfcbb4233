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
    """`data:image/png;base64,…`; also JPEG, WebP and GIF."""
    detail: Literal["auto", "low", "high"] = "auto"
    """Accepted for compatibility: the model's own processor decides the resolution."""


class ImageContent(_Strict, frozen=True, tag_field="type", tag="image_url"):
    """A picture."""

    image_url: ImageUrl


class Message(_Strict, frozen=True):
    """One turn of the conversation; `developer` is the API's newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextContent | ImageContent]
    """Text, or parts of it with pictures between them."""


class StreamOptions(_Strict, frozen=True):
    """Options of a streamed answer."""

    include_usage: bool = False
    """One more event before the end tells what the answer cost."""
    continuous_usage_stats: bool = False
    """As vLLM has it, beside `include_usage`: every event tells the usage so far."""


class SpeculationOptions(_Strict, frozen=True):
    """Our extension: how this request's answer is drafted. It changes the speed alone; with another
    `verification` than "match" a seed's tokens are others, of the same distribution."""

    policy: str | None = None
    """Which draft trees are grown; null: the server's."""
    verification: str | None = None
    trace: bool = False
    """Each event of the stream also tells, under `speculation`, which of its tokens were drafted,
    and the draft tree of its step."""


class ResponseFormat(msgspec.Struct, frozen=True):
    """Only `{"type": "text"}` is served; a JSON schema beside another type is read and refused."""

    type: str


class GenerationOptions(_Strict, frozen=True):
    """What both kinds of completion share; absent or null: the API's own default."""

    model: str
    """As `GET /v1/models` names it."""
    max_tokens: _Positive | None = None
    """Of each answer; null: as many as the server allows and the context has room for."""
    temperature: Annotated[float, _told(minimum=0, maximum=2)] | None = None
    """0 takes the likeliest token; null: 1."""
    top_p: Annotated[float, _told(exclusiveMinimum=0, maximum=1)] | None = None
    """The likeliest tokens that together have this probability are kept."""
    presence_penalty: _Penalty | None = None
    """Subtracted from the logits of tokens that the answer holds."""
    frequency_penalty: _Penalty | None = None
    """Subtracted once for each time that the answer holds the token."""
    logit_bias: Annotated[dict[int, _Bias], _told(propertyNames={"pattern": "^[0-9]+$"})] | None = (
        None
    )
    """By token id: added to its logit."""
    top_k: Annotated[int, _told(minimum=0, maximum=2**31 - 1)] | None = None
    """So many of the likeliest tokens are kept; 0: no limit. This and the next three are beyond
    OpenAI's API, as other servers have them."""
    min_p: Annotated[float, _told(minimum=0, maximum=1)] | None = None
    """Tokens less likely than this share of the likeliest one are cut."""
    repetition_penalty: Annotated[float, _told(exclusiveMinimum=0, maximum=2)] | None = None
    """Divides positive and multiplies negative logits of tokens in the prompt or the answer."""
    ignore_eos: bool | None = None
    """The model's own end does not end the answer; for benchmarks."""
    seed: _Seed | None = None
    """With n > 1, answer i has the seed plus i."""
    stop: _StopString | list[_StopString] | None = None
    """Text that ends the answer; it is not part of it."""
    stream: bool | None = None
    """Send the answer as it comes, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    n: _Positive | None = None
    """How many answers."""
    user: str | None = None
    """Accepted for compatibility."""
    speculation: SpeculationOptions | None = None
    """How the answer is drafted; beyond OpenAI's API."""


class ChatRequest(GenerationOptions, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], _told(minItems=1)]
    """The conversation so far."""
    max_completion_tokens: _Positive | None = None
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    """Give every token's log-probability."""
    top_logprobs: _TopCount | None = None
    """0 to 20 rivals of each token; needs `logprobs`."""
    response_format: ResponseFormat | None = None
    """Text is the only one."""
    metadata: dict[str, str] | None = None
    """Accepted for compatibility."""


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
