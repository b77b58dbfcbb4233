"""The small JSON files of a model folder that the edge reads; no weights, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smart_serve.errors import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ConfigError when it is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path} as JSON") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """As `read_json`, but an absent file is an empty object."""
    return read_json(path) if path.is_file() else {}


def token_text(value: object) -> str | None:
    """A special token as tokenizer_config.json writes it: a string or {"content": ...}."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def int_list(value: object) -> tuple[int, ...]:
    """An id as configurations write it: one, several or none."""
    if isinstance(value, int):
        return (value,)
    if isinstance(value, list):
        return tuple(item for item in value if isinstance(item, int))
    return ()


def image_token_id(config: dict[str, Any]) -> int:
    """The token that stands for a picture in config.json of a multimodal model."""
    for key in ("image_token_index", "image_token_id"):
        if found := int_list(config.get(key)):
            return found[0]
    raise ConfigError("the configuration names no image token")
