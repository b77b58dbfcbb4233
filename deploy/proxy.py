"""What stands before Ray's own handling of a request in each HTTP proxy.

A proxy takes it from its environment, which is that of the process that starts Ray on its node:
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.proxy:middlewares`.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.proxy:middlewares"}


class TextHeaders:
    """Drops headers that are no UTF-8: Ray 2.60 reads ids and sessions from headers as such, and
    answers 500 where they are not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope = {**scope, "headers": [one for one in scope["headers"] if _is_text(one[1])]}
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray asks for."""
    return [Middleware(TextHeaders)]


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
