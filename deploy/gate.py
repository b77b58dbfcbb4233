"""Who may call a route; one log line for every request, without a word of its content."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deploy.keys import KeyOverLimit, KeyRing
from deploy.linger import Exchange, Lingering
from deploy.log_line import log_line
from deploy.room import Room
from deploy.routes import Access
from deploy.spans import under
from smart_serve.errors import ClientError, SmartServeError
from smart_serve.openai.errors import error_response
from smart_serve.openai.respond import Tally

logger = logging.getLogger("ray.serve")

RETRY_S = 1
CLIENT_LEFT = 499
"""The status that web servers log for a client that went away."""


@dataclass(slots=True)
class RequestRecord:
    """What the log may tell of a request."""

    method: str
    route: str
    """As the table of routes has it; the path itself may hold anything."""
    begun_s: float = field(default_factory=time.monotonic)
    key: str | None = None
    answer_id: str | None = None
    tally: Tally | None = None
    status: int = CLIENT_LEFT

    def log(self) -> None:
        figures: dict[str, object] = {
            "method": self.method,
            "endpoint": self.route,
            "status": self.status,
            "duration_ms": round(1e3 * (time.monotonic() - self.begun_s), 1),
            "key": self.key,
            "answer_id": self.answer_id,
            "prompt_tokens": self.tally.prompt_tokens if self.tally else None,
            "completion_tokens": self.tally.completion_tokens if self.tally else None,
        }
        log_line(logger, figures)


Handler = Callable[[Request, RequestRecord], Awaitable[Response]]
Ended = Callable[[RequestRecord], None]
"""What becomes of the record once the answer is sent."""


@dataclass(frozen=True, slots=True)
class Guard:
    """What the routes of one ingress replica have in common."""

    keys: KeyRing
    ended: Ended = RequestRecord.log
    lingering: Lingering = field(default_factory=Lingering)


class GuardedRoute:
    """One route as an ASGI application: admits, handles, tells errors as the API does, logs.

    The key's place, and the one in `room`, are held until the last byte of the answer is sent.
    A body that was not read is then let in for a while, so that its sender sees the answer.
    """

    def __init__(
        self,
        guard: Guard,
        access: Access,
        name: str,
        handler: Handler,
        room: Room | None = None,
    ) -> None:
        """`room`: of a route that takes a body."""
        self._guard = guard
        self._access = access
        self._name = name
        self._handler = handler
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(Request(scope), receive, send)
        request = Request(scope, exchange.receive, exchange.send)
        record = RequestRecord(request.method, self._name)
        try:
            with suppress(ClientDisconnect), ExitStack() as held:
                held.enter_context(under(request.headers.get("traceparent")))
                response = await self._respond(request, record, held)
                await response(scope, exchange.receive, exchange.send)
                record.status = response.status_code
        finally:
            self._guard.ended(record)
        await exchange.end(self._guard.lingering)

    async def _respond(self, request: Request, record: RequestRecord, held: ExitStack) -> Response:
        try:
            self._admit(request, record, held)
            if self._room is not None:
                held.enter_context(self._room.place(request.headers.get("content-length")))
            return await self._handler(request, record)
        except ClientDisconnect:
            raise
        except SmartServeError as error:
            return error_reply(error)
        except Exception as error:
            logger.exception("unexpected failure of %s", self._name)
            return error_reply(error)

    def _admit(self, request: Request, record: RequestRecord, held: ExitStack) -> None:
        """Raises `ClientError` 401, 403 or 429."""
        if self._guard.keys.is_open or self._access == "public":
            return
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        # Header values are bytes; Starlette reads them as Latin-1.
        holder = self._guard.keys.find(secret.strip().encode("latin-1"))
        if scheme.lower() != "bearer" or holder is None:
            message = "a valid API key is needed: Authorization: Bearer <key>"
            raise ClientError(message, code="invalid_api_key", status=401)
        record.key = holder.key.name
        if self._access == "operator" and not holder.key.operator:
            message = "this key may not call this route"
            raise ClientError(message, code="not_allowed", status=403)
        held.enter_context(holder.request())


def error_reply(error: Exception) -> Response:
    """The error as the OpenAI API shapes it."""
    status, body = error_response(error)
    response = json_reply(body, status)
    if isinstance(error, KeyOverLimit):
        response.headers["retry-after"] = str(error.retry_after_s)
    elif status in (429, 503):
        response.headers["retry-after"] = str(RETRY_S)
    elif status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


def json_reply(body: object, status: int = 200) -> Response:
    """A body of our own types."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")
