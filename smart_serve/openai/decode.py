"""Bytes to a request; what is wrong with them is said in our own words, by field."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from smart_serve.errors import ClientError

T = TypeVar("T")

_PATH = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `([^`]*)`")
_MISSING = re.compile(r"^Object missing required field `([^`]*)`")
_EXPECTED = re.compile(r"^Expected `([^`]*)`")
_JSON_WORDS = {"str": "a string", "int": "an integer", "float": "a number", "bool": "true or false"}
_WORDS = {**_JSON_WORDS, "array": "a list", "object": "an object", "null": "null"}
_MAX_NAME_CHARS = 64


def decode_request(body: bytes, kind: type[T]) -> T:
    """Errors: ClientError `invalid_json`, `unknown_field`, `missing_field`, `invalid_type`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _translate(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = "the request body is not valid JSON"
        raise ClientError(message, code="invalid_json") from None


def _translate(text: str) -> ClientError:
    """msgspec's message holds a path and a field name; only these are used."""
    found = _PATH.search(text)
    path = found.group(1).replace("[...]", "") if found else ""
    if unknown := _UNKNOWN.match(text):
        name = _join(path, unknown.group(1)[:_MAX_NAME_CHARS])
        return ClientError(f"unknown field '{name}'", code="unknown_field", param=name)
    if missing := _MISSING.match(text):
        name = _join(path, missing.group(1))
        return ClientError(f"field '{name}' is missing", code="missing_field", param=name)
    name = path or "body"
    if expected := _EXPECTED.match(text):
        kinds = [_WORDS.get(kind) for kind in expected.group(1).split(" | ")]
        wanted = " or ".join(kind for kind in kinds if kind is not None)
        message = f"'{name}' must be {wanted}" if wanted else f"'{name}' has the wrong type"
        return ClientError(message, code="invalid_type", param=name)
    message = f"'{name}' has a value that is not allowed"
    return ClientError(message, code="invalid_value", param=name)


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field
