"""What stands below a field is found, also in a base class, and reaches the OpenAPI document."""

from __future__ import annotations

import msgspec

from smart_serve.openai.errors import ErrorBody
from smart_serve.openai.field_docs import field_docs
from smart_serve.openai.openapi import Operation, openapi_document


class Base(msgspec.Struct):
    """A class."""

    first: int
    """Of the base,
    over two lines."""
    second: int = 2
    third: int = 3
    """Of the base."""


class Derived(Base):
    """Another."""

    third: int = 4
    """Its own."""
    constant = "no field"
    "not of a field"


class Holder(msgspec.Struct):
    """Knows the other through a list alone."""

    inner: list[Derived] | None = None
    """Many."""


def test_fields_without_a_word_are_left_out_and_the_nearest_word_counts() -> None:
    assert field_docs(Derived) == {"first": "Of the base, over two lines.", "third": "Its own."}
    assert field_docs(dict) == {}


def test_the_document_describes_the_fields_of_every_type() -> None:
    one = Operation(method="GET", path="/", operation="get", summary="", answer=Holder)
    schemas = openapi_document([one])["components"]["schemas"]
    assert schemas["Holder"]["properties"]["inner"]["description"] == "Many."
    derived = schemas["Derived"]["properties"]
    assert [derived[name].get("description") for name in ("first", "second", "third")] == [
        "Of the base, over two lines.",
        None,
        "Its own.",
    ]
    assert ErrorBody.__name__ in schemas
