"""Where a request goes whose replica was lost."""

from __future__ import annotations

from deploy.dispatch import offers_without
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


def test_an_emptied_pool_is_left_for_one_that_serves() -> None:
    assert offers_without("fast", loads(fast=1, slow=1), OFFERS) == [SLOW]


def test_a_pool_with_other_replicas_keeps_its_requests() -> None:
    assert offers_without("fast", loads(fast=2, slow=1), OFFERS) == OFFERS


def test_where_nothing_else_serves_the_pool_is_waited_for() -> None:
    assert offers_without("fast", loads(fast=1), OFFERS) == OFFERS
    assert offers_without("fast", loads(), OFFERS) == OFFERS
