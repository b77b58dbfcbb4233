"""`python -m deploy.reference`: fills in what the pages in `deploy/docs` take from the types.

Between `<!-- generated: NAME -->` and `<!-- end -->` stands what the types say; the rest of a page
is written by hand and left alone.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel

from deploy.args import AppArgs, PoolArgs
from deploy.keys import ApiKey
from deploy.metrics.table import COMMON_TAGS, METRICS
from deploy.node_choice import NodeChoice
from deploy.routes import CONSOLE_ROUTES, OPENAPI, ROUTES
from smart_serve.config import EngineConfig, SpeculationConfig
from smart_serve.limits import Limits
from smart_serve.messages import RequestStats, SamplingParams
from smart_serve.openai.field_docs import field_docs

PAGES = Path(__file__).parent / "docs"
_PART = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_TYPES = (
    *(AppArgs, PoolArgs, NodeChoice, ApiKey),
    *(EngineConfig, SpeculationConfig, Limits, SamplingParams, RequestStats),
)

Schema = Mapping[str, Any]
"""A JSON schema, or a part of one."""


def main() -> int:
    """Rewrites the pages; tells which ones changed."""
    for path in sorted(PAGES.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        if (new := refreshed(old)) != old:
            path.write_text(new, encoding="utf-8")
            print(path)
    return 0


def refreshed(page: str) -> str:
    """`page` with its generated parts as they should be. Raises `KeyError` for an unknown part."""
    parts = generated_parts()
    return _PART.sub(lambda found: f"{found[1]}\n{parts[found[2]]}\n{found[3]}", page)


def generated_parts() -> dict[str, str]:
    """All that a page may ask for, by name: `routes`, `operations`, `schemas`, and the classes."""
    document = msgspec.json.decode(OPENAPI)
    schemas = document["components"]["schemas"]
    parts = {kind.__name__: _table(_own_schema(kind)) for kind in _TYPES}
    parts["routes"] = _lines(_route_rows())
    parts["metrics"] = _lines(_metric_rows())
    parts["operations"] = "\n".join(_operations(document["paths"]))
    parts["schemas"] = "\n".join(_section(name, schemas[name]) for name in sorted(schemas))
    return parts


def _own_schema(kind: type) -> Schema:
    """The schema of one class, its fields' docstrings in it as descriptions."""
    schema: dict[str, Any]
    if issubclass(kind, BaseModel):
        schema = kind.model_json_schema()
    else:
        schema = msgspec.json.schema(kind)["$defs"][kind.__name__]
    docs = field_docs(kind)
    for name, field in schema["properties"].items():
        if name in docs:
            field["description"] = docs[name]
    return schema


def _route_rows() -> Iterator[tuple[str, ...]]:
    yield "route", "who may call it", "what"
    for route in (*ROUTES, *CONSOLE_ROUTES):
        path = route.path.replace(":path}", "}")
        yield f"`{route.method} {path}`", route.access, route.summary


def _metric_rows() -> Iterator[tuple[str, ...]]:
    yield "name", "of", "kind", "unit", "tags", "meaning"
    for part, metrics in METRICS.items():
        for one in metrics:
            tags = ", ".join((*COMMON_TAGS[part], *one.tags))
            yield f"`{one.exported_name}`", part, one.kind, one.unit, tags, one.meaning


def _operations(paths: Schema) -> Iterator[str]:
    for path, methods in paths.items():
        for method, told in methods.items():
            yield f"### `{method.upper()} {path}`\n\n{told['summary']}.\n"
            content = told["responses"]["200"]["content"]
            line = f"Answer: {_shown(content['application/json']['schema'])}."
            if body := told.get("requestBody"):
                line = f"Body: {_shown(body['content']['application/json']['schema'])}. {line}"
            if events := content.get("text/event-stream"):
                event = events["itemSchema"]["properties"]["data"]["anyOf"][1]["contentSchema"]
                line += f" With `stream`, each event: {_shown(event)}."
            yield f"{line}\n"


def _section(name: str, schema: Schema) -> str:
    told = " ".join(schema.get("description", "").split())
    return f"### {name}\n\n{told}\n\n{_table(schema)}"


def _table(schema: Schema) -> str:
    """One row for every field."""
    required = schema.get("required", ())
    rows = [("field", "type", "default", "meaning")]
    for name, field in schema["properties"].items():
        default = "required" if name in required else _default(field)
        rows.append((f"`{name}`", _shown(field), default, field.get("description", "")))
    return _lines(rows)


def _default(field: Schema) -> str:
    match field:
        case {"default": {**inner} | [{**inner}]} if inner:
            return "its defaults"  # of a type with a table of its own
        case {"default": value}:
            return f"`{json.dumps(value)}`"
    return ""


def _lines(rows: Iterable[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    lines.insert(1, re.sub(r"[^|]+", "---", lines[0]))
    return "\n".join(lines) + "\n"


def _reference(schema: Schema) -> str | None:
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else None


def _shown(schema: Schema) -> str:
    """A type in few words."""
    if name := _reference(schema):
        return f"[{name}](#{name.lower()})"
    match schema:
        case {"enum": values}:
            return " or ".join(f"`{json.dumps(value)}`" for value in values)
        case {"anyOf": choices} | {"oneOf": choices}:
            return " or ".join(_shown(choice) for choice in choices)
        case {"type": "array", "items": Mapping() as items}:
            return f"list of {_shown(items)}"
        case {"type": "object", "additionalProperties": Mapping() as values}:
            return f"object of {_shown(values)}"
        case {"type": kind}:
            return f"{kind}{_bounds(schema)}"
    return "any"


def _bounds(schema: Schema) -> str:
    match schema:
        case {"minimum": low, "maximum": high} if high < 2**31:
            return f" ({low:g} to {high:g})"
        case {"exclusiveMinimum": low, "maximum": high}:
            return f" (above {low:g}, at most {high:g})"
        case {"minimum": low} if low < -(2**31):
            return " (64 bits)"
        case {"minimum": low}:
            return f" ≥ {low:g}"
        case {"exclusiveMinimum": low}:
            return f" > {low:g}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
