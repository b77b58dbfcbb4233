"""The two families of errors: what the client did, and what we did.

Every message is our own text; the text of a library's exception never reaches a client.
"""

from __future__ import annotations


class SmartServeError(Exception):
    """Base of all errors of this project.

    `status` is the HTTP status, `code` a stable machine-readable word.
    """

    status: int = 500
    code: str = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status


class ClientError(SmartServeError):
    """The request cannot be served as it is (4xx). `param` names the offending field."""

    status = 400
    code = "invalid_request"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, code=code, status=status)
        self.param = param

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        # Exceptions with keyword-only arguments do not survive a process boundary by themselves.
        return _rebuild_client_error, (self.message, self.code, self.status, self.param)


class ServerError(SmartServeError):
    """We failed (5xx); the request itself was fine."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _rebuild_server_error, (self.message, self.code, self.status)


class OverloadedError(ServerError):
    """No room now; trying again later is right (429)."""

    status = 429
    code = "overloaded"

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return OverloadedError, (self.message,)


class ConfigError(SmartServeError):
    """The configuration or a checkpoint on disk is wrong; start-up stops with this sentence."""

    code = "invalid_config"

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return ConfigError, (self.message,)


def _rebuild_client_error(message: str, code: str, status: int, param: str | None) -> ClientError:
    return ClientError(message, code=code, status=status, param=param)


def _rebuild_server_error(message: str, code: str, status: int) -> ServerError:
    return ServerError(message, code=code, status=status)
