"""The OpenAI API over HTTP: routes, bodies, streams and errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from deploy.chat_service import ChatService, PreparedChat
from deploy.dispatch import Dispatcher
from smart_serve.errors import ClientError, ServerError, SmartServeError
from smart_serve.openai.errors import error_response
from smart_serve.openai.respond import completion, sse_answer

logger = logging.getLogger("ray.serve")

Handler = Callable[[Request], Awaitable[Response]]
RETRY_S = 1


def build_http_app(service: ChatService, dispatcher: Dispatcher) -> Starlette:
    """The ASGI application of one ingress replica."""

    async def chat(request: Request) -> Response:
        body = await read_body(request, service.limits.max_body_bytes)
        # In a thread: a body of megabytes takes a while to decode, and other streams must flow.
        prepared = await asyncio.to_thread(service.prepare_body, body)
        if prepared.stream:
            return await _streamed(service, prepared)
        async with aclosing(service.answer(prepared)) as news:
            return _json(200, await completion(prepared.head, news))

    async def models(request: Request) -> Response:
        return _json(200, service.models())

    async def model(request: Request) -> Response:
        if request.path_params["name"] != service.served_name:
            raise ClientError("there is no such model here", code="model_not_found", status=404)
        return _json(200, service.models().data[0])

    async def health(request: Request) -> Response:
        pools = (await dispatcher.view()).pools()
        if not pools:
            raise ServerError("no target has reported yet", code="not_ready", status=503)
        replicas = {name: load.replicas for name, load in pools.items()}
        return _json(200, {"status": "ok", "replicas": replicas})

    async def status(request: Request) -> Response:
        return _json(200, await dispatcher.view())

    routes = [
        Route("/v1/chat/completions", _guarded(chat), methods=["POST"]),
        Route("/v1/models", _guarded(models), methods=["GET"]),
        Route("/v1/models/{name:path}", _guarded(model), methods=["GET"]),
        Route("/health", _guarded(health), methods=["GET"]),
        Route("/status", _guarded(status), methods=["GET"]),
    ]
    return Starlette(routes=routes, exception_handlers={404: _not_found, 405: _not_allowed})


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The body, never holding more than the limit. Raises `ClientError` above it."""
    too_large = ClientError(
        f"the request is larger than {limit_bytes} bytes", code="request_too_large", status=413
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit_bytes:
            raise too_large
    return bytes(body)


class EventStream(StreamingResponse):
    """Server-sent events. However it ends, the source is closed, which cancels the request."""

    def __init__(
        self, first: bytes, events: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]
    ) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(self._body(first, events), 200, headers, "text/event-stream")
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()

    async def _body(self, first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield first
        try:
            async for event in events:
                yield event
        except SmartServeError as error:
            # The client has been told by the last event.
            logger.warning("a stream ended with an error: %s", error.message)


async def _streamed(service: ChatService, chat: PreparedChat) -> Response:
    """Waits for the first event, so that a refusal still has a status of its own."""
    news = service.answer(chat)
    events = sse_answer(chat.head, news, chat.include_usage)
    try:
        first = await anext(events)
    except BaseException:
        await news.aclose()
        raise
    return EventStream(first, events, news.aclose)


def _guarded(handler: Handler) -> Handler:
    """Every error leaves as the OpenAI API shapes it."""

    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=499)
        except SmartServeError as error:
            return _error(error)
        except Exception as error:
            logger.exception("unexpected failure of %s", request.url.path)
            return _error(error)

    return guarded


async def _not_found(request: Request, error: Exception) -> Response:
    return _error(ClientError("there is nothing at this path", code="not_found", status=404))


async def _not_allowed(request: Request, error: Exception) -> Response:
    message = "this path does not take this method"
    return _error(ClientError(message, code="method_not_allowed", status=405))


def _error(error: Exception) -> Response:
    status, body = error_response(error)
    response = _json(status, body)
    if status in (429, 503):
        response.headers["retry-after"] = str(RETRY_S)
    return response


def _json(status: int, body: object) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
