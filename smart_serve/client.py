"""A small HTTP client of a running server, with the standard library alone."""

from __future__ import annotations

import base64
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from smart_serve.errors import ClientError, ConfigError, ServerError, SmartServeError
from smart_serve.limits import Limits

KEY_VARIABLE = "SMART_SERVE_API_KEY"
"""Holds the API key, where the server asks for one."""
TIMEOUT_S = Limits().request_timeout_s
_TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif"}


def chat_body(
    model: str, text: str, image_urls: Iterable[str] = (), **fields: Any
) -> dict[str, Any]:
    """One user turn for /v1/chat/completions, the pictures (as data URLs) first."""
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}} for url in image_urls
    ]
    content.append({"type": "text", "text": text})
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


def stream_chat(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a streamed answer. Raises what the server says as `ClientError` or
    `ServerError`, also for an answer that breaks off."""
    fields = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with _open(f"{url}/v1/chat/completions", fields) as response:
        for line in _lines(response):
            name, _, data = line.partition(b": ")
            if name != b"data":
                continue  # the id of an event, for those who go on after it
            if data == b"[DONE]":
                return
            event: dict[str, Any] = json.loads(data)
            if "error" in event:
                raise ServerError(event["error"]["message"], code=event["error"]["code"])
            yield event
    raise ServerError("the answer broke off")


def get_json(url: str) -> dict[str, Any]:
    """Raises `ServerError` when there is no good answer."""
    with _open(url) as response:
        value: dict[str, Any] = json.load(response)
        return value


def delta_text(event: dict[str, Any]) -> str:
    """The news of one event; "" when it has none."""
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def data_url(path: Path) -> str:
    """A picture file as a data URL. Raises `ClientError`."""
    kind = _TYPES.get(path.suffix.lower())
    if kind is None:
        raise ClientError(f"{path}: the file name ends in none of {', '.join(_TYPES)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ClientError(f"{path} cannot be read: {error.strerror}") from error
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _open(url: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"'{url}' is not an http:// or https:// address")
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    if key := os.environ.get(KEY_VARIABLE):
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data, headers)
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        raise _told(error) from error
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"no server answers at {url}") from error
    return response


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Lines that are not empty. Raises `ServerError` when the connection is lost."""
    try:
        for line in response:
            if line.strip():
                yield line.strip()
    except (OSError, http.client.HTTPException) as error:
        raise ServerError("the connection to the server was lost") from error


def _told(error: urllib.error.HTTPError) -> SmartServeError:
    """What the server says of its refusal, or the bare status."""
    try:
        detail = json.load(error)["error"]
        return ServerError(detail["message"], code=detail["code"], status=error.code)
    except (ValueError, KeyError, TypeError):
        return ServerError(f"the server answers with status {error.code}", status=error.code)
