"""From what Ray raises to our own errors."""

from __future__ import annotations

import logging

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)

from smart_serve.errors import OverloadedError, ServerError, SmartServeError

logger = logging.getLogger("ray.serve")

RAY_FAILURES = (RayError, RayServeException, AioRpcError)
"""Everything that a call of another deployment may raise beside our own errors."""


class ReplicaSilentError(Exception):
    """A replica that does not show that it lives."""


REPLICA_LOST = (RayActorError, ReplicaUnavailableError, AioRpcError, ReplicaSilentError)
"""The replica is gone; another may take over."""


def first_line(error: BaseException) -> str:
    """Ray's messages are whole traceback pages."""
    return str(error).split("\n", 1)[0]


def as_own_error(error: Exception) -> SmartServeError:
    """What a client may be told. Anything not ours is logged here and becomes a plain 500."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, SmartServeError):
        return cause
    if isinstance(error, BackPressureError):
        return OverloadedError("too many requests are waiting; try again later")
    if isinstance(error, (*REPLICA_LOST, DeploymentUnavailableError)):
        return ServerError("a part of the server is restarting", code="unavailable", status=503)
    logger.error("unexpected failure of a deployment", exc_info=error)
    return ServerError("the server failed on this request")
