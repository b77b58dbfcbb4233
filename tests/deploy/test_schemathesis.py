"""Schemathesis: the server does what its OpenAPI document says, whatever it is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from local_app import ARGS, LocalSource, local_app, served
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served_app import wait_for
from test_keys import key

from deploy.keys import KeyRing
from deploy.routes import ROUTES
from smart_serve.openai.openapi import openapi_document

SECRET = "key-of-the-schema-tests"
HEADERS = {"Authorization": f"Bearer {SECRET}"}
MANY = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(MANY, max_examples=12, derandomize=True)
Seen = Counter[tuple[str, str, int]]


def document(mode: GenerationMode, thorough: bool) -> Any:
    schema = schemathesis.openapi.from_dict(openapi_document(ROUTES))
    schema.config.generation.update(modes=[mode])
    # Every bound and every wrong type once: some hundred requests, whatever `max_examples` is.
    schema.config.phases.coverage.enabled = thorough
    return schema


def documents(thorough: bool) -> dict[str, Any]:
    return {mode.value: document(mode, thorough) for mode in GenerationMode}


@pytest.fixture(scope="module")
def url(source: LocalSource) -> Iterator[str]:
    ring = KeyRing([key(SECRET, requests_per_minute=10**6, operator=True)])
    with served(local_app(source, ring)) as one:
        yield one
        wait_for(source.is_idle)


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    counts: Seen = Counter()
    yield counts
    for route in ROUTES:
        if route.request is not None:  # control: what is allowed is answered, the rest refused
            assert counts["positive", route.path, 200] > 0, route.path
            assert counts["negative", route.path, 400] > 0, route.path


def bounded(body: Any, path: str) -> Any:
    """For the model that is served, and short: what is allowed stays so, what is wrong too."""
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("model"), str):
        body["model"] = ARGS.served_name
    if "completions" in path:
        body.setdefault("max_tokens", None)
        for name in body.keys() & {"max_tokens", "max_completion_tokens"}:
            if body[name] is None or (type(body[name]) is int and body[name] > 0):
                body[name] = 3
    return body


def check(case: Case, url: str, seen: Seen) -> None:
    case.body = bounded(case.body, case.path)
    response = case.call(base_url=url, headers=HEADERS, timeout=60)
    assert case.meta is not None
    seen[case.meta.generation.mode.value, case.path, response.status_code] += 1
    if "text/event-stream" in response.headers["content-type"]:
        assert response.text.endswith("data: [DONE]\n\n")
    # A document cannot say all that is refused: pictures that are none, ids beyond the vocabulary.
    case.validate_response(response, excluded_checks=[positive_data_acceptance])


@schemathesis.pytest.parametrize(**documents(thorough=False))
@FEW
def test_the_document_holds(case: Case, url: str, seen: Seen) -> None:
    check(case, url, seen)


@pytest.mark.slow
@schemathesis.pytest.parametrize(**documents(thorough=True))
@MANY
def test_the_document_holds_for_many(case: Case, url: str, seen: Seen) -> None:
    check(case, url, seen)


def test_control_a_document_that_promises_more_is_found_out(url: str) -> None:
    promised = openapi_document(ROUTES)
    for kind in ("Liveness", "TextCompletion"):
        promised["components"]["schemas"][kind]["required"].append("since")
    schema = schemathesis.openapi.from_dict(promised)
    with pytest.raises(FailureGroup, match="since"):
        schema["/live"]["GET"].Case().call_and_validate(base_url=url)
    path, fields = "/v1/completions", {"model": ARGS.served_name, "prompt": "a", "max_tokens": 2}
    streamed = schema[path]["POST"].Case(
        body={**fields, "stream": True}, media_type="application/json"
    )
    with pytest.raises(FailureGroup, match="SSE event violates"):
        streamed.call_and_validate(base_url=url, headers=HEADERS)
