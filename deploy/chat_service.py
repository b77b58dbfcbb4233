"""What the ingress does with one chat: bytes to a request, tokens to text. No HTTP here."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from deploy.args import AppArgs
from deploy.dispatch import Dispatcher
from smart_serve.frontend.detokenizer import Detokenizer
from smart_serve.frontend.prompt import PromptBuilder, check_length
from smart_serve.messages import GenerateRequest
from smart_serve.models.folders import resolve_model
from smart_serve.openai.answer import AnswerHead, ModelCard, ModelList
from smart_serve.openai.respond import TextNews, text_news
from smart_serve.openai.validate import ParsedChat, parse_chat_request
from vision.image import CheckedImage


class PreparedChat(msgspec.Struct, frozen=True, kw_only=True):
    """A chat that passed every check before GPU work."""

    head: AnswerHead
    request: GenerateRequest
    images: tuple[CheckedImage, ...]
    stream: bool
    include_usage: bool


class ChatService:
    """Text stays at the edge: template, tokens and stop strings are handled here."""

    def __init__(self, args: AppArgs, dispatcher: Dispatcher) -> None:
        self.limits = args.parsed_limits()
        self.served_name = args.served_name
        self._dispatcher = dispatcher
        self._builder = PromptBuilder.from_folder(resolve_model(args.model), self.limits)
        # What fits in no pool is refused here; between pools, the largest counts.
        kv_tokens = max(args.engine_config(pool).kv_tokens for pool in args.pools)
        self._context = min(self._builder.context_tokens, kv_tokens)
        self._created = int(time.time())

    def models(self) -> ModelList:
        return ModelList(data=(ModelCard(id=self.served_name, created=self._created),))

    def prepare_body(self, body: bytes) -> PreparedChat:
        """From an HTTP body. Raises `ClientError`."""
        return self.prepare(parse_chat_request(body, self.limits, self.served_name))

    def prepare(self, chat: ParsedChat) -> PreparedChat:
        """Template, tokens, lengths. Raises `ClientError`."""
        prompt = self._builder.build(chat.messages, chat.images)
        sampling = chat.fitted_sampling(len(prompt.token_ids), self._context)
        check_length(prompt, sampling.max_tokens, self._context)
        name = f"chatcmpl-{secrets.token_hex(12)}"
        return PreparedChat(
            head=AnswerHead(id=name, model=chat.model, created=int(time.time())),
            request=GenerateRequest(
                request_id=name,
                token_ids=prompt.token_ids,
                image_spans=prompt.image_spans,
                sampling=sampling,
            ),
            images=chat.images,
            stream=chat.stream,
            include_usage=chat.include_usage,
        )

    async def answer(self, chat: PreparedChat) -> AsyncGenerator[TextNews]:
        """The answer's text as it comes; the last item carries end and usage.

        Ending it early cancels the request in the target. Raises `SmartServeError`.
        """
        request = chat.request
        detokenizer = Detokenizer(self._builder.tokenizer, request.sampling.stop)
        async with aclosing(self._dispatcher.stream(request, chat.images)) as chunks:
            async for item in text_news(chunks, detokenizer, len(request.token_ids)):
                yield item
