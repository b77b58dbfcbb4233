"""What all commands that talk to a running server share."""

from __future__ import annotations

import argparse

from smart_serve.client import KEY_VARIABLE

DEFAULT_URL = "http://127.0.0.1:8000"


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the server is, and how its answer is told."""
    text = f"of the server (%(default)s); an API key is read from {KEY_VARIABLE}"
    parser.add_argument("--url", default=DEFAULT_URL, type=_without_slash, help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON value instead")


def _without_slash(url: str) -> str:
    return url.rstrip("/")
