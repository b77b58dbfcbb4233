"""Back-pressure at the door: whether there is room for one more request, before its body comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from smart_serve.errors import OverloadedError
from smart_serve.limits import Limits


class Room:
    """What the requests under way at one ingress replica may hold. Used in its event loop alone."""

    def __init__(self, limits: Limits, is_full: Callable[[], bool]) -> None:
        """`is_full`: whether the queues of all targets are, as far as is known here."""
        self._limits = limits
        self._is_full = is_full
        self._requests = 0
        self._body_bytes = 0

    @contextmanager
    def place(self, declared_bytes: str | None) -> Iterator[None]:
        """Held to the answer's last byte: pictures stay until then. `declared_bytes`: the header
        content-length; without one the body may become as large as any. Raises `OverloadedError`.
        """
        limits, size = self._limits, self._limits.max_body_bytes
        if declared_bytes is not None and declared_bytes.isdecimal():
            size = min(size, int(declared_bytes))  # a larger one is refused, not read
        if (
            self._requests >= limits.max_requests
            or (self._requests and self._body_bytes + size > limits.max_held_bytes)
            or self._is_full()
        ):
            raise OverloadedError("too many requests are under way; try again later")
        self._requests += 1
        self._body_bytes += size
        try:
            yield
        finally:
            self._requests -= 1
            self._body_bytes -= size
