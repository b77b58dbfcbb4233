"""The OpenAPI 3.2 document of the HTTP API, generated from the types that the server uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from smart_serve.openai.errors import ErrorBody
from smart_serve.openai.field_docs import field_docs

API_VERSION = "1"
"""Of the API, not of the server: it changes when a client has to."""
_PLACE = re.compile(r"\{(\w+)(:\w+)?\}")
_REFERENCE = "#/components/schemas/{name}"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path."""

    method: Literal["GET", "POST"]
    path: str
    """With places as Starlette writes them: {name} or {name:path}."""
    operation: str
    summary: str
    request: type | None = None
    example: dict[str, Any] | None = None
    """A body that is answered with 200, once `model` is the served model's name."""
    answer: type
    event: type | None = None
    """What each event of a stream holds, for an answer that can be streamed."""
    access: str = "public"


def openapi_document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document, ready for JSON."""
    types = [kind for one in operations for kind in (one.request, one.answer, one.event) if kind]
    types = list(dict.fromkeys([*types, ErrorBody]))
    shapes, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    _describe_fields(components, types)
    schema_of = dict(zip(types, shapes, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        path = paths.setdefault(_PLACE.sub(r"{\1}", one.path), {})
        path[one.method.lower()] = _operation(one, schema_of)
    return {
        "openapi": "3.2.0",
        "info": {
            "title": "smart-serve",
            "version": API_VERSION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _describe_fields(components: dict[str, dict[str, Any]], types: Iterable[Any]) -> None:
    pending, seen = list(types), set()
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in seen:
            seen.add(kind)
            for name, text in field_docs(kind).items():
                components[kind.__name__]["properties"][name]["description"] = text
            pending.extend(get_type_hints(kind).values())
        else:
            pending.extend(get_args(kind))


def _operation(one: Operation, schema_of: dict[type, dict[str, Any]]) -> dict[str, Any]:
    answer = {"application/json": {"schema": schema_of[one.answer]}}
    if one.event is not None:
        answer["text/event-stream"] = {"itemSchema": _item(schema_of[one.event], schema_of)}
    error = {"application/json": {"schema": schema_of[ErrorBody]}}
    described: dict[str, Any] = {
        "operationId": one.operation,
        "summary": one.summary,
        "responses": {
            "200": {"description": "The answer", "content": answer},
            "4XX": {"description": "The request was refused", "content": error},
            "5XX": {"description": "The server failed", "content": error},
        },
    }
    if one.request is not None:
        body = {"schema": schema_of[one.request]}
        if one.example is not None:
            body["example"] = one.example
        described["requestBody"] = {"required": True, "content": {"application/json": body}}
    if places := _PLACE.findall(one.path):
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name, _ in places
        ]
    if one.access != "public":
        described["security"] = [{"key": []}]
    return described


def _item(event: dict[str, Any], schema_of: dict[type, dict[str, Any]]) -> dict[str, Any]:
    """One event of a stream: the last of a good one says [DONE], the last of a bad one why."""
    content = {"anyOf": [event, schema_of[ErrorBody]]}
    data = {"contentMediaType": "application/json", "contentSchema": content}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {
            "data": {"type": "string", "anyOf": [{"const": "[DONE]"}, data]},
            "id": {"type": "string"},
        },
    }
