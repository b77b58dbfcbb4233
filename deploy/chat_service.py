"""What the ingress does with one request: bytes to token ids, tokens to text. No HTTP, no Ray."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec

from deploy.args import AppArgs
from smart_serve.errors import ClientError
from smart_serve.frontend.detokenizer import Detokenizer
from smart_serve.frontend.prompt import Prompt, PromptBuilder, check_length
from smart_serve.messages import GenerateRequest, SamplingParams, TokenChunk
from smart_serve.models.folders import resolve_model
from smart_serve.openai.answer import AnswerHead, Detokenized, ModelCard, ModelList, Tokens
from smart_serve.openai.merge import merged
from smart_serve.openai.options import AnswerOptions
from smart_serve.openai.respond import text_news
from smart_serve.openai.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from smart_serve.openai.shapes import AnswerShape, ChatShape, TextNews, TextShape
from smart_serve.openai.stream_position import StreamPosition
from smart_serve.openai.usage import UsageEvents
from smart_serve.openai.validate import (
    Conversation,
    ParsedChat,
    RemoteImage,
    located_image,
    parse_body,
    parse_chat,
    parse_completion,
    parse_tokenize,
)
from vision.fetch import PictureFetcher
from vision.image import CheckedImage


class TokenSource(Protocol):
    """Where tokens come from: the cluster, or one engine in this process."""

    def stream(
        self, request: GenerateRequest, images: Sequence[CheckedImage]
    ) -> AsyncGenerator[TokenChunk]:
        """A chunk per step; ending it early cancels the request. Raises `SmartServeError`."""
        ...


class PreparedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer whose request passed every check before GPU work."""

    position: StreamPosition
    """Where the client stands: at the beginning, unless it goes on with a stream that broke."""
    shape: AnswerShape
    requests: tuple[GenerateRequest, ...]
    """One per choice."""
    images: tuple[CheckedImage, ...] = ()
    prompt_tokens: int
    stream: bool
    usage: UsageEvents

    @property
    def id(self) -> str:
        return self.position.name


class ChatService:
    """Text stays at the edge: template, tokens and stop strings are handled here."""

    def __init__(
        self, args: AppArgs, source: TokenSource, fetcher: PictureFetcher | None = None
    ) -> None:
        """`fetcher`: of pictures; None: there is none, and nothing is ever asked of other hosts."""
        self.limits = args.parsed_limits()
        self.served_name = args.served_name
        self._source = source
        self._fetcher = fetcher
        self._builder = PromptBuilder.from_folder(
            resolve_model(args.model, weights=False), self.limits
        )
        # What fits in no pool is refused here; between pools, the largest counts.
        kv_tokens = max(args.engine_config(pool).kv_tokens for pool in args.pools)
        self._context = min(self._builder.context_tokens, kv_tokens)
        self._created = int(time.time())

    def models(self) -> ModelList:
        card = ModelCard(id=self.served_name, created=self._created, max_model_len=self._context)
        return ModelList(data=(card,))

    async def prepare_chat_body(
        self, body: bytes, after: StreamPosition | None = None
    ) -> PreparedAnswer:
        """From the body of a chat; `after`: where its stream broke. Raises `ClientError`."""
        chat = await asyncio.to_thread(self._parse_chat, body)
        conversation = await self._fetched(chat.conversation)
        chat = msgspec.structs.replace(chat, conversation=conversation)
        return await asyncio.to_thread(self.prepare_chat, chat, after)

    def prepare_chat(self, chat: ParsedChat, after: StreamPosition | None = None) -> PreparedAnswer:
        """Template, tokens, lengths. Raises `ClientError`."""
        prompt, images = self._build(chat.conversation)
        options = _with_seed(chat.options, after)
        choices = options.choices(len(prompt.token_ids), self._context)
        position = _position("chatcmpl", choices, after)
        return PreparedAnswer(
            position=position,
            shape=ChatShape(self._head(position)),
            requests=self._requests(position, prompt, choices, options.trace, "messages"),
            images=images,
            prompt_tokens=len(prompt.token_ids),
            stream=options.stream,
            usage=options.usage,
        )

    async def prepare_completion_body(
        self, body: bytes, after: StreamPosition | None = None
    ) -> PreparedAnswer:
        """From the body of a text completion; choice i of prompt p is number p * n + i."""
        return await asyncio.to_thread(self._prepare_completion, body, after)

    async def tokenize(self, body: bytes) -> Tokens:
        """The tokens of a conversation or of plain text. Raises `ClientError`."""
        parsed = await asyncio.to_thread(self._parse_tokenize, body)
        if isinstance(parsed, str):
            prompt = await asyncio.to_thread(self._builder.build_plain, parsed)
        else:
            conversation = await self._fetched(parsed)
            prompt, _ = await asyncio.to_thread(self._build, conversation)
        return Tokens(prompt.token_ids, len(prompt.token_ids), self._context)

    async def detokenize(self, body: bytes) -> Detokenized:
        """Text of token ids. Raises `ClientError`."""
        return await asyncio.to_thread(self._detokenize, body)

    def answer(self, answer: PreparedAnswer) -> AsyncGenerator[TextNews]:
        """The choices' text as it comes; each one's last item carries its end and its stats.

        Ending it early cancels the requests in the target. Raises `SmartServeError`.
        """
        choices = [
            self._choice(index, request, answer.images)
            for index, request in enumerate(answer.requests)
        ]
        return choices[0] if len(choices) == 1 else merged(choices)

    async def _choice(
        self, index: int, request: GenerateRequest, images: Sequence[CheckedImage]
    ) -> AsyncGenerator[TextNews]:
        detokenizer = Detokenizer(self._builder.tokenizer, request.sampling.stop)
        async with aclosing(self._source.stream(request, images)) as chunks:
            async for item in text_news(chunks, detokenizer, index, request.trace):
                yield item

    def _parse_chat(self, body: bytes) -> ParsedChat:
        request = parse_body(body, ChatRequest, self.limits, self.served_name)
        return parse_chat(request, self.limits, self._fetcher is not None)

    def _parse_tokenize(self, body: bytes) -> Conversation | str:
        request = parse_body(body, TokenizeRequest, self.limits, self.served_name)
        return parse_tokenize(request, self.limits, self._fetcher is not None)

    def _prepare_completion(self, body: bytes, after: StreamPosition | None) -> PreparedAnswer:
        request = parse_body(body, CompletionRequest, self.limits, self.served_name)
        parsed = parse_completion(request, self.limits)
        options = _with_seed(parsed.options, after)
        prompts = [self._builder.build_plain(prompt) for prompt in parsed.prompts]
        choices = [options.choices(len(one.token_ids), self._context) for one in prompts]
        position = _position("cmpl", tuple(itertools.chain.from_iterable(choices)), after)
        requests: list[GenerateRequest] = []
        for prompt, chosen in zip(prompts, choices, strict=True):
            requests += self._requests(position, prompt, chosen, options.trace, "prompt")
        return PreparedAnswer(
            position=position,
            shape=TextShape(self._head(position)),
            requests=tuple(requests),
            prompt_tokens=sum(len(prompt.token_ids) for prompt in prompts),
            stream=options.stream,
            usage=options.usage,
        )

    def _detokenize(self, body: bytes) -> Detokenized:
        request = parse_body(body, DetokenizeRequest, self.limits, self.served_name)
        self._builder.tokenizer.check_ids(request.tokens, "tokens")
        return Detokenized(self._builder.tokenizer.decode(request.tokens))

    async def _fetched(self, conversation: Conversation) -> Conversation:
        """With every picture here. Together, fetched pictures are no larger than a body may be."""
        remote = [image for image in conversation.images if isinstance(image, RemoteImage)]
        if not remote or self._fetcher is None:
            return conversation
        most = min(self.limits.max_image_bytes, self.limits.max_body_bytes // len(remote))
        data = await asyncio.gather(
            *(self._fetcher.fetch(image.url, most, image.param) for image in remote)
        )
        arrived = iter(data)
        images = tuple(
            located_image(next(arrived), image.param, self.limits)
            if isinstance(image, RemoteImage)
            else image
            for image in conversation.images
        )
        return msgspec.structs.replace(conversation, images=images)

    def _build(self, conversation: Conversation) -> tuple[Prompt, tuple[CheckedImage, ...]]:
        images = tuple(image for image in conversation.images if isinstance(image, CheckedImage))
        return self._builder.build(conversation.messages, images), images

    def _head(self, position: StreamPosition) -> AnswerHead:
        return AnswerHead(position.name, self.served_name, created=int(time.time()))

    def _requests(
        self,
        position: StreamPosition,
        prompt: Prompt,
        choices: Sequence[SamplingParams],
        trace: bool,
        param: str,
    ) -> tuple[GenerateRequest, ...]:
        check_length(prompt, choices[0].max_tokens, self._context, param)
        self._builder.tokenizer.check_ids(tuple(choices[0].logit_bias), "logit_bias")
        return tuple(
            GenerateRequest(
                request_id=position.name,
                token_ids=prompt.token_ids,
                image_spans=prompt.image_spans,
                sampling=sampling,
                trace=trace,
            )
            for sampling in choices
        )


def _with_seed(options: AnswerOptions, after: StreamPosition | None) -> AnswerOptions:
    """Every answer has a seed, for all replicas that it may meet and for a client's return."""
    sampling, seed = options.sampling, options.sampling.seed
    if after is not None:
        _check_can_be_repeated(options)
        if seed not in (None, after.seed):
            raise _not_resumed("Last-Event-ID is of an answer with another seed")
        seed = after.seed
    elif seed is None:
        seed = secrets.randbits(63)
    return msgspec.structs.replace(options, sampling=msgspec.structs.replace(sampling, seed=seed))


def _check_can_be_repeated(options: AnswerOptions) -> None:
    if not options.stream:
        raise _not_resumed("Last-Event-ID goes with stream = true")
    if options.sampling.logprobs is not None or options.trace:
        raise _not_resumed("a stream with logprobs or a trace cannot be gone on with")
    if options.sampling.verification != "match":
        raise _not_resumed("only with verification = match does a seed give the same answer again")


def _position(
    kind: str, choices: Sequence[SamplingParams], after: StreamPosition | None
) -> StreamPosition:
    if after is None:
        seed = choices[0].seed
        assert seed is not None
        name = f"{kind}-{secrets.token_hex(12)}"
        return StreamPosition(name, seed, (None,) * len(choices))
    if len(after.places) != len(choices) or not after.name.startswith(f"{kind}-"):
        raise _not_resumed("Last-Event-ID is of another kind of request")
    return after


def _not_resumed(message: str) -> ClientError:
    return ClientError(message, code="not_resumable", param="Last-Event-ID")
