"""A chat request's meaning: messages, checked pictures, sampling. Nothing is decoded or run."""

from __future__ import annotations

import msgspec

from smart_serve.config import POLICY_NAMES, is_policy
from smart_serve.errors import ClientError
from smart_serve.frontend.chat import ChatMessage, ImagePart, TextPart
from smart_serve.limits import Limits
from smart_serve.messages import SamplingParams
from smart_serve.openai.decode import decode_chat_request
from smart_serve.openai.schema import ChatRequest, ImageContent, Message
from vision.data_url import parse_data_url
from vision.image import CheckedImage, check_image


class ParsedChat(msgspec.Struct, frozen=True, kw_only=True):
    """A request that passed every check which needs no tokenizer."""

    model: str
    messages: tuple[ChatMessage, ...]
    images: tuple[CheckedImage, ...]
    """In the order of their places in the messages."""
    sampling: SamplingParams
    max_tokens_given: bool
    """False: `sampling.max_tokens` is only the server's limit; see `fitted_sampling`."""
    stream: bool
    include_usage: bool

    def fitted_sampling(self, prompt_tokens: int, context: int) -> SamplingParams:
        """Sampling whose unasked-for limit fits in the context; what was asked for stays."""
        if self.max_tokens_given:
            return self.sampling
        room = max(1, context - prompt_tokens)
        limit = min(self.sampling.max_tokens, room)
        return msgspec.structs.replace(self.sampling, max_tokens=limit)


def parse_chat_request(body: bytes, limits: Limits, served_model: str) -> ParsedChat:
    """Everything that can be refused without a tokenizer, cheapest first.

    Errors: ClientError; each cause has its own code, and `param` names the field.
    """
    if len(body) > limits.max_body_bytes:
        message = f"the request has {len(body)} bytes; the limit is {limits.max_body_bytes}"
        raise ClientError(message, code="request_too_large", status=413)
    request = decode_chat_request(body)
    if request.model != served_model:
        message = f"this server does not serve the requested model; it serves '{served_model}'"
        raise ClientError(message, code="model_not_found", status=404, param="model")
    _check_options(request)
    _check_messages(request.messages, limits)
    stops = _stop_strings(request, limits)
    max_tokens = _max_tokens(request, limits)
    return ParsedChat(
        model=request.model,
        messages=tuple(_chat_message(message) for message in request.messages),
        images=_images(request.messages, limits),
        sampling=_sampling(request, stops, max_tokens or limits.max_completion_tokens),
        max_tokens_given=max_tokens is not None,
        stream=bool(request.stream),
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
    )


def _check_options(request: ChatRequest) -> None:
    if request.n is not None and request.n != 1:
        message = "only n = 1 is supported: one answer per request"
        raise ClientError(message, code="unsupported_value", param="n")
    if request.stream_options is not None and not request.stream:
        message = "stream_options needs stream = true"
        raise ClientError(message, code="invalid_value", param="stream_options")
    policy = request.speculation.policy if request.speculation else None
    if policy is not None and not is_policy(policy):
        message = f"the speculation policy must be one of {', '.join(POLICY_NAMES)}"
        raise ClientError(message, code="invalid_value", param="speculation.policy")


def _check_messages(messages: list[Message], limits: Limits) -> None:
    def refuse(bad: bool, code: str, message: str) -> None:
        if bad:
            raise ClientError(message, code=code, param="messages")

    refuse(not messages, "empty_messages", "messages must hold at least one message")
    count = f"{len(messages)} messages; the limit is {limits.max_messages}"
    refuse(len(messages) > limits.max_messages, "too_many_messages", count)
    texts = [text for message in messages for text in _chat_message(message).texts()]
    pictures = [image for message in messages for image in _image_parts(message)]
    no_text = not any(text.strip() for text in texts)
    refuse(no_text and not pictures, "empty_prompt", "the prompt is empty")
    chars = sum(map(len, texts))
    long = f"{chars} characters of text; the limit is {limits.max_text_chars}"
    refuse(chars > limits.max_text_chars, "prompt_too_long", long)
    many = f"{len(pictures)} pictures; the limit is {limits.max_images}"
    refuse(len(pictures) > limits.max_images, "too_many_images", many)
    misplaced = any(_image_parts(message) for message in messages if message.role != "user")
    refuse(misplaced, "invalid_image_role", "only messages of the user can hold pictures")


def _stop_strings(request: ChatRequest, limits: Limits) -> tuple[str, ...]:
    stop = request.stop
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > limits.max_stop_strings:
        message = f"{len(stops)} stop strings; the limit is {limits.max_stop_strings}"
        raise ClientError(message, code="invalid_value", param="stop")
    if any(len(text) > limits.max_stop_chars for text in stops):
        message = f"a stop string is longer than {limits.max_stop_chars} characters"
        raise ClientError(message, code="invalid_value", param="stop")
    return stops


def _max_tokens(request: ChatRequest, limits: Limits) -> int | None:
    given = request.max_completion_tokens
    if given is None:
        given = request.max_tokens
    elif request.max_tokens not in (None, given):
        message = "max_tokens and max_completion_tokens differ; give one of them"
        raise ClientError(message, code="invalid_value", param="max_tokens")
    if given is not None and not 1 <= given <= limits.max_completion_tokens:
        message = f"max_tokens must be between 1 and {limits.max_completion_tokens}"
        raise ClientError(message, code="invalid_value", param="max_tokens")
    return given


def _sampling(request: ChatRequest, stop: tuple[str, ...], max_tokens: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=0 if request.top_k is None else request.top_k,
        seed=request.seed,
        stop=stop,
        policy=request.speculation.policy if request.speculation else None,
    )


def _images(messages: list[Message], limits: Limits) -> tuple[CheckedImage, ...]:
    images = []
    for at, message in enumerate(messages):
        for part_at, part in enumerate(message.content):
            if isinstance(part, ImageContent):
                param = f"messages[{at}].content[{part_at}].image_url.url"
                images.append(_image(part.image_url.url, param, limits))
    return tuple(images)


def _image(url: str, param: str, limits: Limits) -> CheckedImage:
    parsed = parse_data_url(url, param)
    try:
        return check_image(parsed.data, limits, parsed.media_type)
    except ClientError as error:
        # Which of the pictures it was is known only here.
        raise ClientError(error.message, code=error.code, param=param) from error


def _image_parts(message: Message) -> list[ImageContent]:
    return [part for part in message.content if isinstance(part, ImageContent)]


def _chat_message(message: Message) -> ChatMessage:
    if isinstance(message.content, str):
        return ChatMessage(role=message.role, content=message.content)
    parts = tuple(
        ImagePart() if isinstance(part, ImageContent) else TextPart(text=part.text)
        for part in message.content
    )
    return ChatMessage(role=message.role, content=parts)
