"""Where a request goes whose replica was lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from served_app import ServedApp

from deploy import dispatch
from deploy.args import AppArgs, PoolArgs
from deploy.dispatch import Dispatcher, offers_without
from deploy.metrics.ingress import IngressMetrics
from smart_serve.errors import OverloadedError, ServerError
from smart_serve.messages import (
    NOTHING,
    Assignment,
    GenerateRequest,
    RequestShape,
    SamplingParams,
    TokenChunk,
)
from smart_serve.routing.assign import Offer
from smart_serve.routing.cluster_view import ClusterView, ReplicaView
from smart_serve.routing.pool_load import PoolLoad
from tests.routing.load_reports import report

FAST, SLOW, SILENT = (Offer(name) for name in ("fast", "slow", "silent"))
OFFERS = (FAST, SLOW, SILENT)


def loads(**replicas: int) -> dict[str, PoolLoad]:
    """Of pools with so many replicas."""
    reports = [
        report(f"{pool}-{i}", pool) for pool, count in replicas.items() for i in range(count)
    ]
    return ClusterView(tuple(ReplicaView(one, 0.0) for one in reports)).pools()


class SlowRouter:
    """Has a view after this long."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self.cluster = self

    async def remote(self) -> ClusterView:
        await asyncio.sleep(self._wait_s)
        return ClusterView((ReplicaView(report("a", "fast"), 0.0),))


async def test_who_asks_how_the_cluster_stands_waits_for_a_slow_router(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "ROUTER_S", 0.01)
    slow: Any = SlowRouter(0.2)
    dispatcher = Dispatcher(AppArgs(), {}, slow, IngressMetrics())
    dispatcher.stop()
    with pytest.raises(ServerError, match="does not answer"):
        await dispatcher.last_view()  # Requests do not wait.
    assert len((await dispatcher.view()).replicas) == 1


class AwayRouter:
    """Answers with these, one after the other; with None not at all."""

    def __init__(self, *views: ClusterView | None) -> None:
        self._views = iter(views)
        self.cluster = self

    async def remote(self) -> ClusterView:
        if (view := next(self._views)) is None:
            raise TimeoutError
        return view


async def test_the_last_view_holds_while_the_router_is_away() -> None:
    one, other = (ClusterView((ReplicaView(report(name, "fast"), 0.0),)) for name in "ab")
    away: Any = AwayRouter(None, ClusterView(), None, one, None, None, other, None)
    dispatcher = Dispatcher(AppArgs(), {}, away, IngressMetrics())
    dispatcher.stop()
    with pytest.raises(ServerError, match="does not answer"):
        await dispatcher.last_view()
    assert await dispatcher.last_view() == ClusterView()
    with pytest.raises(ServerError, match="does not answer"):
        await dispatcher.last_view()  # It has never told of a replica.
    assert await dispatcher.last_view() == one
    assert await dispatcher.last_view() == one
    with pytest.raises(ServerError, match="does not answer"):
        await dispatcher.view()  # the control
    assert await dispatcher.last_view() == other
    assert await dispatcher.last_view() == other


def test_an_emptied_pool_is_left_for_one_that_serves() -> None:
    assert offers_without("fast", loads(fast=1, slow=1), OFFERS) == [SLOW]


def test_a_pool_with_other_replicas_keeps_its_requests() -> None:
    assert offers_without("fast", loads(fast=2, slow=1), OFFERS) == OFFERS


def test_where_nothing_else_serves_the_pool_is_waited_for() -> None:
    assert offers_without("fast", loads(fast=1), OFFERS) == OFFERS
    assert offers_without("fast", loads(), OFFERS) == OFFERS


def doubles() -> dict[str, type]:
    """Pools by what becomes of a request there. In here, because Ray's workers cannot import this
    module."""

    class Falls:
        """Silent after its first tokens, as a node that is gone."""

        async def generate(self, request: Any, images: Any) -> AsyncGenerator[TokenChunk]:
            yield NOTHING
            yield TokenChunk(token_ids=(1,))
            await asyncio.sleep(60)

    class Slow:
        """Says nothing of importance for a while."""

        async def generate(self, request: Any, images: Any) -> AsyncGenerator[TokenChunk]:
            for _ in range(8):
                yield NOTHING
                await asyncio.sleep(0.1)
            goes_on = (*request.token_ids, 9)
            yield TokenChunk(token_ids=goes_on, finish_reason="stop")

    class Full:
        async def generate(self, request: Any, images: Any) -> AsyncGenerator[TokenChunk]:
            yield NOTHING
            raise OverloadedError("no room")

    class Breaks:
        async def generate(self, request: Any, images: Any) -> AsyncGenerator[TokenChunk]:
            yield NOTHING
            raise ZeroDivisionError("not for clients")

    class Stops:
        """Cancels what it has, as a server that is stopped."""

        async def generate(self, request: Any, images: Any) -> AsyncGenerator[TokenChunk]:
            yield TokenChunk(token_ids=(1,))
            raise asyncio.CancelledError

    class Order:
        """In place of the router: these pools, one after the other."""

        async def take(self, *pools: str) -> None:
            self._pools = iter(pools)

        async def assign(self, shape: RequestShape) -> Assignment:
            return Assignment(pool=next(self._pools), reason="a test's")

    class Way:
        def __init__(self, *handles: Any) -> None:
            """They must be reached from somewhere."""

    return {
        "falls": Falls,
        "slow": Slow,
        "full": Full,
        "breaks": Breaks,
        "stops": Stops,
        "router": Order,
        "way": Way,
    }


@pytest.fixture(scope="module")
def pools(app: ServedApp) -> Iterator[dict[str, Any]]:
    """Handles by pool, and the router's."""
    from ray import serve

    kinds = {
        name: serve.deployment(kind, name=name, ray_actor_options={"num_cpus": 0})
        for name, kind in doubles().items()
    }
    way = kinds.pop("way")
    serve.run(
        way.bind(*(kind.bind() for kind in kinds.values())), name="doubles", route_prefix=None
    )
    yield {name: serve.get_deployment_handle(name, "doubles") for name in kinds}
    serve.delete("doubles")


def answer(pools: dict[str, Any], *order: str) -> list[TokenChunk]:
    """What a client gets of a request that goes to these pools, while they are lost."""
    handles = dict(pools)
    router = handles.pop("router")
    router.take.remote(*order).result(timeout_s=30)
    args = AppArgs(pools=tuple(PoolArgs(name=name) for name in handles))

    async def ask() -> list[TokenChunk]:
        one = Dispatcher(args, handles, router, IngressMetrics())
        request = GenerateRequest(
            request_id="r", token_ids=(5,), sampling=SamplingParams(seed=1, max_tokens=9)
        )
        try:
            return [chunk async for chunk in one.stream(request, ())]
        finally:
            one.stop()

    return asyncio.run(ask())


@pytest.mark.serve
def test_a_replica_that_falls_silent_or_stops_is_left_and_one_that_beats_is_not(
    pools: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SILENCE_S", 0.5)
    monkeypatch.setattr(dispatch, "offers_without", lambda *_: [Offer("slow")])
    for lost in ("falls", "stops"):
        tokens = [chunk.token_ids for chunk in answer(pools, lost)]
        # The second one goes on with what the first one gave; of the beats nobody hears.
        assert tokens == [(1,), (5, 1, 9)]


@pytest.mark.serve
def test_errors_of_a_target_arrive_as_they_are_and_strange_ones_in_our_words(
    pools: dict[str, Any],
) -> None:
    with pytest.raises(OverloadedError, match="no room"):
        answer(pools, "full")
    with pytest.raises(ServerError, match="the server failed on this request"):
        answer(pools, "breaks")
