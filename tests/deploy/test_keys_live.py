"""Keys and the limit of requests on a live application: a second ingress before the same engine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import pytest
from served_app import APP, ServedApp, wait_for
from test_gate import body, path_of
from test_keys import key

from deploy.routes import CONSOLE_ROUTES, ROUTES

pytestmark = pytest.mark.serve
KEYED = "keyed"
GUEST, OPERATOR = "guest-key-0123456789", "operator-key-0123456789"
BUSY, SPENT = "busy-key-0123456789", "spent-key-0123456789"
MAX_REQUESTS = 3
ALL = (*ROUTES, *CONSOLE_ROUTES)
Refused = tuple[int, str]


@pytest.fixture(scope="module")
def url(app: ServedApp) -> Iterator[str]:
    """With keys, and little room."""
    from ray import serve

    from deploy.app import _ingress
    from deploy.args import AppArgs

    args = AppArgs(limits={"max_requests": MAX_REQUESTS}, ingress_cpus=0.01)
    keys = (
        key(GUEST, name="guest"),
        key(OPERATOR, name="operator", operator=True),
        key(BUSY, name="busy", operator=True, max_concurrent=1),
        key(SPENT, name="spent", operator=True, requests_per_minute=1),
    )
    target, router = (
        serve.get_deployment_handle(name, APP) for name in ("target-default", "router")
    )
    ingress = _ingress(args).bind(args, {"default": target}, router, keys)
    serve.run(ingress, name=KEYED, route_prefix=f"/{KEYED}")
    yield f"{app.url}/{KEYED}"
    serve.delete(KEYED)
    app.wait_until_idle()


def headers(secret: str | None) -> dict[str, str]:
    return {} if secret is None else {"authorization": f"Bearer {secret}"}


def answers(url: str, secret: str | None) -> dict[str, Refused]:
    """What each operation answers to nothing but the key: status and error code."""
    found: dict[str, Refused] = {}
    with httpx.Client(headers=headers(secret), timeout=60) as client:
        for route in ALL:
            reply = client.request(route.method, url + path_of(route.path))
            is_error = reply.status_code != 200
            found[route.operation] = (
                reply.status_code,
                reply.json()["error"]["code"] if is_error else "",
            )
    return found


def expected(refused: Refused) -> dict[str, Refused]:
    return {one.operation: (200, "") if one.access == "public" else refused for one in ALL}


def test_the_table_has_routes_of_every_kind() -> None:
    assert {one.access for one in ALL} == {"public", "key", "operator"}
    assert sum(one.access != "public" for one in ALL) >= 7


@pytest.mark.parametrize("secret", [None, "wrong-key-0123456789", GUEST[:-1]])
def test_who_has_no_key_calls_public_routes_alone(url: str, secret: str | None) -> None:
    assert answers(url, secret) == expected((401, "invalid_api_key"))


def test_a_key_opens_what_it_may(url: str) -> None:
    good = {one.operation: (200, "") for one in ALL if one.request is None}
    empty = {one.operation: (400, "invalid_json") for one in ALL if one.request is not None}
    assert answers(url, OPERATOR) == good | empty
    assert answers(url, GUEST) == good | empty | {"status": (403, "not_allowed")}
    chat = httpx.post(f"{url}/v1/chat/completions", json=body(), headers=headers(GUEST), timeout=60)
    assert chat.status_code == 200


def test_a_key_that_has_spent_its_minute_waits_everywhere(url: str) -> None:
    first = httpx.get(f"{url}/v1/models", headers=headers(SPENT))
    assert first.status_code == 200
    assert answers(url, SPENT) == expected((429, "rate_limit_exceeded"))
    last = httpx.get(f"{url}/v1/models", headers=headers(SPENT))
    assert 1 <= int(last.headers["retry-after"]) <= 60


def begin(held: ExitStack, url: str, secret: str) -> None:
    """A request that is under way until `held` ends: its body does not come."""
    place = urlsplit(url)
    one = socket.create_connection((str(place.hostname), int(place.port or 0)))
    held.enter_context(one)
    head = f"POST {place.path}/tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n"
    one.sendall(f"{head}Authorization: Bearer {secret}\r\n\r\n{{".encode())


def test_a_key_with_its_requests_under_way_waits_everywhere(url: str) -> None:
    everywhere = expected((429, "rate_limit_exceeded"))
    assert answers(url, BUSY)["listModels"] == (200, "")
    with ExitStack() as held:
        begin(held, url, BUSY)
        wait_for(lambda: answers(url, BUSY) == everywhere)
        assert answers(url, GUEST)["listModels"] == (200, "")  # control: others are not held up
    wait_for(lambda: answers(url, BUSY)["listModels"] == (200, ""))


def test_too_many_requests_are_refused_by_us_and_at_once(url: str) -> None:
    taking = {one.operation for one in ALL if one.request is not None}
    with ExitStack() as held:
        for _ in range(MAX_REQUESTS + 2):
            begin(held, url, OPERATOR)
        wait_for(lambda: answers(url, OPERATOR)["tokenize"] == (429, "overloaded"))
        found = answers(url, OPERATOR)
        assert {found[name] for name in taking} == {(429, "overloaded")}
        assert {found[name] for name in found.keys() - taking} == {(200, "")}
    wait_for(lambda: answers(url, OPERATOR)["tokenize"] == (400, "invalid_json"))
