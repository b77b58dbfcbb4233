"""Bodies to what they mean: messages, checked pictures, sampling. Nothing is decoded or run.

Everything is refused here that can be refused without a tokenizer, cheapest first. Errors are
ClientErrors; each cause has its own code, and `param` names the field.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import msgspec

from smart_serve.errors import ClientError
from smart_serve.frontend.chat import ChatMessage, ImagePart, Role, TextPart
from smart_serve.limits import Limits
from smart_serve.messages import MAX_LOGPROBS
from smart_serve.openai.decode import decode_request
from smart_serve.openai.options import AnswerOptions, parse_options
from smart_serve.openai.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ImageContent,
    Message,
    TokenizeRequest,
)
from vision.data_url import parse_data_url
from vision.image import CheckedImage, check_image

T = TypeVar("T", ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)


class RemoteImage(msgspec.Struct, frozen=True):
    """A picture that is still to be fetched."""

    url: str
    param: str


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """Messages and their pictures, in the order of their places in the messages."""

    messages: tuple[ChatMessage, ...]
    images: tuple[CheckedImage | RemoteImage, ...] = ()


class ParsedChat(msgspec.Struct, frozen=True, kw_only=True):
    """A chat that passed every check which needs no tokenizer."""

    conversation: Conversation
    options: AnswerOptions


class ParsedCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """As `ParsedChat`, for prompts that take no template: each is text or token ids."""

    prompts: tuple[str | tuple[int, ...], ...]
    options: AnswerOptions


def parse_body(body: bytes, kind: type[T], limits: Limits, served_model: str) -> T:
    """The request as it came, of bounded size and for the model that is served."""
    if len(body) > limits.max_body_bytes:
        message = f"the request has {len(body)} bytes; the limit is {limits.max_body_bytes}"
        raise ClientError(message, code="request_too_large", status=413)
    request = decode_request(body, kind)
    if request.model != served_model:
        message = f"this server does not serve the requested model; it serves '{served_model}'"
        raise ClientError(message, code="model_not_found", status=404, param="model")
    return request


def parse_chat(request: ChatRequest, limits: Limits, fetches: bool = False) -> ParsedChat:
    """A chat's meaning. `fetches`: https: URLs of pictures are left for later, not refused."""
    if request.response_format is not None and request.response_format.type != "text":
        message = 'only response_format {"type": "text"} is supported; the text is not constrained'
        raise ClientError(message, code="unsupported_value", param="response_format")
    options = parse_options(request, limits, _logprobs(request), request.max_completion_tokens)
    conversation = parse_messages(request.messages, limits, fetches)
    return ParsedChat(conversation=conversation, options=options)


def parse_completion(request: CompletionRequest, limits: Limits) -> ParsedCompletion:
    """A text completion's meaning."""
    options = parse_options(request, limits, request.logprobs)
    prompts = _prompts(request.prompt)
    if not prompts or not all(prompts):
        raise ClientError("the prompt is empty", code="empty_prompt", param="prompt")
    if len(prompts) * options.num_choices > limits.max_choices:
        message = f"prompts times n is more than the limit of {limits.max_choices}"
        raise ClientError(message, code="invalid_value", param="prompt")
    _check_length(sum(map(len, prompts)), limits, "prompt")
    return ParsedCompletion(prompts=prompts, options=options)


def parse_tokenize(request: TokenizeRequest, limits: Limits, fetches: bool) -> Conversation | str:
    """What is to be tokenised: a conversation or plain text."""
    if (request.messages is None) == (request.prompt is None):
        message = "give messages or prompt, and not both"
        raise ClientError(message, code="invalid_value", param="messages")
    if request.messages is not None:
        return parse_messages(request.messages, limits, fetches)
    _check_length(len(request.prompt or ""), limits, "prompt")
    return request.prompt or ""


def parse_messages(messages: list[Message], limits: Limits, fetches: bool = False) -> Conversation:
    """A conversation's meaning; its pictures' headers are checked. `fetches`: as `parse_chat`."""

    def refuse(bad: bool, code: str, message: str) -> None:
        if bad:
            raise ClientError(message, code=code, param="messages")

    refuse(not messages, "empty_messages", "messages must hold at least one message")
    count = f"{len(messages)} messages; the limit is {limits.max_messages}"
    refuse(len(messages) > limits.max_messages, "too_many_messages", count)
    parsed = tuple(map(_chat_message, messages))
    texts = [text for message in parsed for text in message.texts()]
    places = sum(message.num_images() for message in parsed)
    no_text = not any(text.strip() for text in texts)
    refuse(no_text and not places, "empty_prompt", "the prompt is empty")
    _check_length(sum(map(len, texts)), limits, "messages")
    many = f"{places} pictures; the limit is {limits.max_images}"
    refuse(places > limits.max_images, "too_many_images", many)
    misplaced = any(message.num_images() for message in parsed if message.role != "user")
    refuse(misplaced, "invalid_image_role", "only messages of the user can hold pictures")
    return Conversation(messages=parsed, images=tuple(_images(messages, limits, fetches)))


def _logprobs(request: ChatRequest) -> int | None:
    top = request.top_logprobs
    if top is not None and not (request.logprobs and 0 <= top <= MAX_LOGPROBS):
        message = f"top_logprobs is between 0 and {MAX_LOGPROBS}, and needs logprobs = true"
        raise ClientError(message, code="invalid_value", param="top_logprobs")
    return top or 0 if request.logprobs else None


def _check_length(chars: int, limits: Limits, param: str) -> None:
    if chars > limits.max_text_chars:
        message = f"{chars} characters of text; the limit is {limits.max_text_chars}"
        raise ClientError(message, code="prompt_too_long", param=param)


def _prompts(prompt: str | list[str | int | list[int]]) -> tuple[str | tuple[int, ...], ...]:
    """A list of integers is one prompt; a list of texts and lists is several."""
    if isinstance(prompt, str):
        return (prompt,)
    ids = tuple(item for item in prompt if isinstance(item, int))
    if not ids:
        return tuple(
            item if isinstance(item, str) else tuple(item)
            for item in prompt
            if not isinstance(item, int)
        )
    if len(ids) < len(prompt):
        message = "a list of token ids cannot hold texts or lists too"
        raise ClientError(message, code="invalid_type", param="prompt")
    return (ids,)


def _images(
    messages: list[Message], limits: Limits, fetches: bool
) -> Iterator[CheckedImage | RemoteImage]:
    for at, message in enumerate(messages):
        for part_at, part in enumerate(message.content):
            if not isinstance(part, ImageContent):
                continue
            url = part.image_url.url
            param = f"messages[{at}].content[{part_at}].image_url.url"
            if fetches and url[:8].lower() == "https://":
                yield RemoteImage(url, param)
            else:
                parsed = parse_data_url(url, param)
                yield located_image(parsed.data, param, limits, parsed.media_type)


def located_image(
    data: bytes, param: str, limits: Limits, claimed_type: str | None = None
) -> CheckedImage:
    """As `check_image`; an error names the field that the picture came from."""
    try:
        return check_image(data, limits, claimed_type)
    except ClientError as error:
        raise ClientError(error.message, code=error.code, param=param) from error


def _chat_message(message: Message) -> ChatMessage:
    role: Role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return ChatMessage(role=role, content=message.content)
    parts = tuple(
        ImagePart() if isinstance(part, ImageContent) else TextPart(text=part.text)
        for part in message.content
    )
    return ChatMessage(role=role, content=parts)
