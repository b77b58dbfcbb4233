"""How Serve is set up here, and what stands before its handling of a request.

Serve takes it from the environment: `NODE` from that of the process that starts Ray on a node, for
the controller and the HTTP proxies read it; `REPLICAS` from that of each replica, to which the
application gives it. `python -m deploy.through_ray` tells what both bring.
"""

from __future__ import annotations

import os
import socket
import sysconfig
from pathlib import Path

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

MIDDLEWARES = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.proxy:middlewares"}
"""For all that speaks HTTP."""
HAPROXY = {
    # Clients reach the ingresses without a Python process between.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # Installed beside this Python; `deploy.haproxy` says what it is for.
    "RAY_SERVE_HAPROXY_BINARY_PATH": f"{sysconfig.get_path('scripts')}/smart-serve-haproxy",
}
NODE = {
    **MIDDLEWARES,
    **HAPROXY,
    # Ray puts its workers behind everything else; here they are what the node is for.
    "RAY_worker_niceness": "0",
}
REPLICAS = {
    # Once they are loaded, ours never hold up the loop: models run in threads of their own.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}


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


def of_replicas() -> dict[str, str]:
    """`REPLICAS`, unless the environment here says otherwise."""
    return {name: os.environ.get(name, value) for name, value in REPLICAS.items()}


def beside_others(folder: Path) -> dict[str, str]:
    """Files (in `folder`) and ports of HAProxy for a Ray that is not the only one of its machine:
    Serve's are the same for all."""
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        # Short, because Serve puts 56 letters between, and HAProxy takes 97 in all.
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/a.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/m.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/state",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
    }


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
