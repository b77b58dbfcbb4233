"""The OpenAI API over HTTP: routes, bodies, streams and errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Protocol, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from deploy.chat_service import ChatService, PreparedAnswer
from deploy.console.files import PAGE, console_file
from deploy.gate import Ended, Guard, GuardedRoute, Handler, RequestRecord, error_reply, json_reply
from deploy.keys import KeyRing
from deploy.pool_state import PoolState
from deploy.room import Room
from deploy.routes import CONSOLE_ROUTES, OPENAPI, ROUTES, Health, Liveness, Status
from deploy.routes import Route as RouteEntry
from smart_serve.errors import ClientError, ServerError, SmartServeError
from smart_serve.openai.respond import Tally, sse_answer, whole_answer
from smart_serve.openai.stream_position import StreamPosition
from smart_serve.routing.cluster_view import ClusterView

logger = logging.getLogger("ray.serve")


class Cluster(Protocol):
    """What is known of the target replicas."""

    async def view(self) -> ClusterView:
        """Their last reports. Raises `ServerError` when there is no answer."""
        ...

    async def last_view(self) -> ClusterView:
        """The same as far as it is known. Raises `ServerError` when nothing is."""
        ...

    async def pools(self, view: ClusterView) -> dict[str, PoolState]:
        """How each configured pool stands. Raises like `view`."""
        ...

    def is_full(self) -> bool:
        """Whether every queue was full when last heard of; a guess, and answered at once."""
        ...


class HttpApi:
    """The handlers, by the names that the table of routes gives them."""

    def __init__(self, service: ChatService, cluster: Cluster) -> None:
        self._service = service
        self._cluster = cluster
        self.handlers: dict[str, Handler] = {
            "createChatCompletion": self._chat,
            "createCompletion": self._completion,
            "listModels": self._models,
            "retrieveModel": self._model,
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
            "health": self._health,
            "live": self._live,
            "status": self._status,
            "openapi": self._openapi,
            "console": self._console,
            "consoleFile": self._console_file,
        }

    async def _chat(self, request: Request, record: RequestRecord) -> Response:
        return await self._answered(request, record, self._service.prepare_chat_body)

    async def _completion(self, request: Request, record: RequestRecord) -> Response:
        return await self._answered(request, record, self._service.prepare_completion_body)

    async def _answered(
        self,
        request: Request,
        record: RequestRecord,
        prepare: Callable[[bytes, StreamPosition | None], Awaitable[PreparedAnswer]],
    ) -> Response:
        service = self._service
        last = request.headers.get("last-event-id")
        after = None if last is None else StreamPosition.parse(last)
        answer = await prepare(await self._body(request), after)
        news, tally = service.answer(answer), Tally(answer.prompt_tokens)
        record.answer_id, record.tally = answer.id, tally
        if not answer.stream:
            async with aclosing(news):
                return json_reply(await whole_answer(answer.shape, news, tally))
        events = sse_answer(answer.shape, news, tally, answer.usage, answer.position)
        try:
            # A refusal that comes before the first event still has a status of its own.
            first = await anext(events)
        except BaseException:
            await news.aclose()
            raise
        return EventStream(first, events, news.aclose)

    async def _models(self, request: Request, record: RequestRecord) -> Response:
        return json_reply(self._service.models())

    async def _model(self, request: Request, record: RequestRecord) -> Response:
        if request.path_params["model"] != self._service.served_name:
            raise ClientError("there is no such model here", code="model_not_found", status=404)
        return json_reply(self._service.models().data[0])

    async def _tokenize(self, request: Request, record: RequestRecord) -> Response:
        return json_reply(await self._service.tokenize(await self._body(request)))

    async def _detokenize(self, request: Request, record: RequestRecord) -> Response:
        return json_reply(await self._service.detokenize(await self._body(request)))

    async def _health(self, request: Request, record: RequestRecord) -> Response:
        pools = (await self._cluster.last_view()).pools()
        if not pools:
            raise ServerError("no target has reported yet", code="not_ready", status=503)
        replicas = {name: load.replicas for name, load in pools.items()}
        return json_reply(Health(status="ok", replicas=replicas))

    async def _live(self, request: Request, record: RequestRecord) -> Response:
        return json_reply(Liveness(status="ok"))

    async def _status(self, request: Request, record: RequestRecord) -> Response:
        view = await self._cluster.view()
        pools = await self._cluster.pools(view)
        return json_reply(Status(pools, view.replicas, view.assigned))

    async def _openapi(self, request: Request, record: RequestRecord) -> Response:
        return Response(OPENAPI, media_type="application/json")

    async def _console(self, request: Request, record: RequestRecord) -> Response:
        return console_file(PAGE)

    async def _console_file(self, request: Request, record: RequestRecord) -> Response:
        return console_file(request.path_params["file"])

    async def _body(self, request: Request) -> bytes:
        limits = self._service.limits
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                return await read_body(request, limits.max_body_bytes)
        except TimeoutError:
            message = f"the request took more than {limits.body_timeout_s:g} s to arrive"
            raise ClientError(message, code="request_timeout", status=408) from None


def build_http_app(
    service: ChatService, cluster: Cluster, keys: KeyRing, ended: Ended = RequestRecord.log
) -> Starlette:
    """The ASGI application of one ingress replica."""
    handlers, room = HttpApi(service, cluster).handlers, Room(service.limits, cluster.is_full)
    guard = Guard(keys, ended)

    def guarded(one: RouteEntry) -> GuardedRoute:
        handler = handlers[one.operation]
        door = room if one.request else None
        return GuardedRoute(guard, one.access, one.path, handler, door)

    table = (*ROUTES, *CONSOLE_ROUTES)
    routes = [Route(one.path, guarded(one), methods=[one.method]) for one in table]

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        # Guarded too: who has no key does not learn which paths there are. Starlette does with it
        # what it does with a response: it runs it.
        return cast(Response, GuardedRoute(guard, "key", "(none)", partial(_refused, error)))

    app = Starlette(routes=routes, exception_handlers=dict.fromkeys(_REFUSALS, refuse))
    app.router.redirect_slashes = False
    return app


_REFUSALS = {
    404: ("not_found", "there is nothing at this path"),
    405: ("method_not_allowed", "this path does not take this method"),
}


async def _refused(error: HTTPException, request: Request, record: RequestRecord) -> Response:
    code, message = _REFUSALS[error.status_code]
    reply = error_reply(ClientError(message, code=code, status=error.status_code))
    reply.headers.update(error.headers or {})  # Allow
    return reply


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
