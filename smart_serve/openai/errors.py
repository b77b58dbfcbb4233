"""Errors as the OpenAI API shapes them."""

from __future__ import annotations

import msgspec

from smart_serve.errors import ClientError, ConfigError, SmartServeError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong, for people (`message`) and programs (`code`, `param`)."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    """{"error": {...}}."""

    error: ErrorDetail


def error_response(error: BaseException) -> tuple[int, ErrorBody]:
    """HTTP status and body. What is not ours, or meant for the operator, is told as 500 only."""
    if not isinstance(error, SmartServeError) or isinstance(error, ConfigError):
        message = "the server failed to answer this request"
        return 500, ErrorBody(ErrorDetail(message, "server_error", None, "internal_error"))
    family = "server_error" if error.status >= 500 else "invalid_request_error"
    detail = ErrorDetail(
        message=error.message,
        type=_TYPES.get(error.status, family),
        param=error.param if isinstance(error, ClientError) else None,
        code=error.code,
    )
    return error.status, ErrorBody(detail)
