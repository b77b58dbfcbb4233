"""The console's files by name, and how they are sent."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from smart_serve.bundled import EXAMPLE_PICTURE
from smart_serve.errors import ClientError

PAGE = "console.html"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_HEADERS = {
    # Nothing but what this server sends is run, shown or asked; `data:` is the dropped picture.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_PATHS = [path for path in Path(__file__).parent.iterdir() if path.suffix in _TYPES]
# Read once, so that a request never names a path.
_FILES = {path.name: path.read_bytes() for path in [*_PATHS, EXAMPLE_PICTURE]}


def console_file(name: str) -> Response:
    """Raises `ClientError` 404."""
    if name not in _FILES:
        raise ClientError("there is nothing at this path", code="not_found", status=404)
    kind = _TYPES[Path(name).suffix]
    return Response(_FILES[name], headers=_HEADERS, media_type=kind)
