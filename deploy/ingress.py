"""The ingress deployment: the OpenAI API over HTTP, and the same for Python."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from deploy.args import AppArgs
from deploy.chat_service import ChatService, PreparedAnswer
from deploy.dispatch import Dispatcher
from deploy.gate import RequestRecord
from deploy.http_api import build_http_app
from deploy.keys import ApiKey, KeyRing
from deploy.metrics.ingress import IngressMetrics
from smart_serve.errors import ClientError
from smart_serve.frontend.chat import ChatMessage, ImagePart, TextPart
from smart_serve.messages import SamplingParams
from smart_serve.openai.options import AnswerOptions
from smart_serve.openai.respond import Tally
from smart_serve.openai.validate import Conversation, ParsedChat
from vision.fetch import PictureFetcher
from vision.image import check_image


class IngressReplica:
    """Stateless: any number of replicas."""

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self,
        args: AppArgs,
        pools: dict[str, DeploymentHandle],
        router: DeploymentHandle,
        keys: tuple[ApiKey, ...],
    ) -> None:
        self._metrics = IngressMetrics()
        self._dispatcher = Dispatcher(args, pools, router, self._metrics)
        fetcher = PictureFetcher(args.image_domains) if args.image_domains else None
        self._keys = KeyRing(keys, args.bounds("ingress")[1])
        self._service = await asyncio.to_thread(ChatService, args, self._dispatcher, fetcher)

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_http_app(self._service, self._dispatcher, self._keys, self._ended)

    async def generate(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        images: Sequence[bytes] = (),
        **sampling: Any,
    ) -> AsyncGenerator[str | dict[str, Any]]:
        """Streams pieces of text, then one dictionary: the answer's usage and speculation figures.

        `prompt`: a question, which `images` (encoded pictures) precede; or messages as the OpenAI
        API has them, with pictures inside as data URLs. `sampling`: fields of `SamplingParams`.
        Raises `ClientError` for what the HTTP API would answer with 4xx. Whoever holds a handle is
        inside the cluster: API keys are not asked for.

            handle = serve.get_app_handle("smart-serve")
            for piece in handle.generate.options(stream=True).remote("What is this?", [png]):
                ...
        """
        chat = await self._prepare(prompt, images, sampling)
        tally = Tally(chat.prompt_tokens)
        async with aclosing(self._service.answer(chat)) as news:
            async for item in news:
                tally.note(item)
                if item.text:
                    yield item.text
        usage: dict[str, Any] = msgspec.to_builtins(tally.usage())
        yield usage

    def _ended(self, record: RequestRecord) -> None:
        record.log()
        self._metrics.http(record.route, record.status)

    async def _prepare(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        images: Sequence[bytes],
        sampling: dict[str, Any],
    ) -> PreparedAnswer:
        service = self._service
        if not isinstance(prompt, str):
            if images:
                message = "pictures stand inside the messages, as data URLs"
                raise ClientError(message, code="invalid_value", param="images")
            body = {"model": service.served_name, "messages": list(prompt), "n": 1, **sampling}
            chat = await service.prepare_chat_body(msgspec.json.encode(body))
            _check_is_text(chat)
            return chat
        try:
            parsed = SamplingParams(**sampling)
        except TypeError:
            message = f"sampling takes {', '.join(SamplingParams.__struct_fields__)}"
            raise ClientError(message, code="unknown_field", param="sampling") from None
        parts: tuple[ImagePart | TextPart, ...] = tuple(ImagePart() for _ in images)
        parts = (*parts, TextPart(text=prompt))
        conversation = Conversation(
            messages=(ChatMessage(role="user", content=parts if images else prompt),),
            images=tuple(check_image(data, service.limits) for data in images),
        )
        options = AnswerOptions(sampling=parsed, stream=True)
        parsed_chat = ParsedChat(conversation=conversation, options=options)
        chat = await asyncio.to_thread(service.prepare_chat, parsed_chat)
        _check_is_text(chat)
        return chat


def _check_is_text(chat: PreparedAnswer) -> None:
    first, *others = chat.requests
    if others or first.sampling.logprobs is not None:
        message = "a handle streams the text of one answer; HTTP gives several, and logprobs"
        raise ClientError(message, code="invalid_value", param="n" if others else "logprobs")
