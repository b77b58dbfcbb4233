"""An answer that comes before the request has been read must still reach its client.

A server that closes a connection with unread bytes resets it, and the client, busy sending, never
sees why it was refused. So the end of such an answer waits until the rest has come.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.requests import Request
from starlette.types import Message, Receive, Send

LINGER_S = 5.0
"""How long the rest of a body is taken and thrown away; nginx's `lingering_timeout`."""


class Lingering:
    """How many requests of one ingress replica linger. Used in its event loop alone."""

    def __init__(self, at_most: int = 64) -> None:
        """`at_most`: more end at once, for who has no key must not fill the server up."""
        self._left = at_most

    async def drain(self, receive: Receive) -> None:
        """Take the rest of a body, for a while."""
        if self._left == 0:
            return
        self._left -= 1
        try:
            with suppress(TimeoutError):  # it may be cut off then
                async with asyncio.timeout(LINGER_S):
                    while (await receive()).get("more_body", False):
                        pass
        finally:
            self._left += 1


class Exchange:
    """A request and its answer, of which the last byte but not the end is sent at once while the
    body is not read."""

    def __init__(self, request: Request, receive: Receive, send: Send) -> None:
        headers = request.headers
        self._receive, self._send = receive, send
        self._is_unread = (
            "content-length" in headers or "transfer-encoding" in headers
        ) and "expect" not in headers  # such a client sends nothing before it is asked to
        self._end_is_due = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._is_unread = self._is_unread and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and self._is_unread:
            self._end_is_due = True
            message = {**message, "more_body": True}
        await self._send(message)

    async def end(self, lingering: Lingering) -> None:
        """After the answer: nothing, unless its end was held back."""
        if self._end_is_due:
            await lingering.drain(self.receive)
            await self._send({"type": "http.response.body", "body": b""})
