from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from ray import serve
from ray.serve.config import RequestRouterConfig
from served_app import ServedApp

pytestmark = pytest.mark.serve
REQUESTS = 30


@pytest.fixture(scope="module")
def pool(app: ServedApp) -> Iterator[Any]:
    """A handle of three replicas that tell who answers."""

    # Here, because Ray's workers cannot import this module.
    class Named:
        def __call__(self) -> str:
            return serve.get_replica_context().replica_id.unique_id

    router = RequestRouterConfig(
        request_router_class="deploy.request_router.PreferredReplicaRouter"
    )
    named = serve.deployment(
        Named,
        num_replicas=3,
        max_ongoing_requests=2 * REQUESTS,
        ray_actor_options={"num_cpus": 0},
        request_router_config=router,
    )
    yield serve.run(named.bind(), name="named", route_prefix=None)
    serve.delete("named")


def answers(handle: Any) -> Counter[str]:
    # All at once: a replica that was found for one request must not go to another.
    return Counter(one.result(timeout_s=30) for one in [handle.remote() for _ in range(REQUESTS)])


def test_a_preferred_replica_gets_all_that_prefer_it(pool: Any) -> None:
    everybody = answers(pool)
    assert len(everybody) > 1
    for replica in everybody:
        assert answers(pool.options(session_id=replica)) == {replica: REQUESTS}


def test_a_preferred_replica_that_is_gone_is_replaced_by_any(pool: Any) -> None:
    assert answers(pool.options(session_id="nobody")).total() == REQUESTS
