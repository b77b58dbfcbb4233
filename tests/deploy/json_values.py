"""Hypothesis strategies for JSON: values that a schema allows, and values of any kind."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)  # fmt: skip


def values_of(schema: Schema, components: dict[str, Schema]) -> st.SearchStrategy[Any]:
    """Values that `schema` allows; references are looked up in `components`."""
    if "$ref" in schema:
        return values_of(components[schema["$ref"].rpartition("/")[2]], components)
    if "anyOf" in schema:
        return st.one_of([values_of(one, components) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return _objects(schema, components)
    if kind == "array":
        return st.lists(values_of(schema.get("items", {}), components), max_size=3)
    simple = {
        "string": st.text(max_size=12),
        "integer": st.integers(-3, 30) | st.integers(),
        "number": st.floats(-3, 3) | st.floats(allow_nan=False, allow_infinity=False),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return simple[kind] if kind else ANYTHING


def _objects(schema: Schema, components: dict[str, Schema]) -> st.SearchStrategy[Any]:
    if "properties" not in schema:
        keys = st.text(max_size=4) | st.integers(0, 50).map(str)
        extra = schema.get("additionalProperties", {})
        inner = values_of(extra, components) if isinstance(extra, dict) else ANYTHING
        return st.dictionaries(keys, inner, max_size=3)
    fields = {name: values_of(one, components) for name, one in schema["properties"].items()}
    required = set(schema.get("required", ()))
    return st.fixed_dictionaries(
        {name: fields[name] for name in required},
        optional={name: field for name, field in fields.items() if name not in required},
    )
