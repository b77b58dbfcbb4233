"""To which pool a request goes: where it will be finished soonest, by what the reports say now."""

from __future__ import annotations

from collections.abc import Sequence

from smart_serve.errors import ServerError
from smart_serve.messages import Assignment, RequestShape
from smart_serve.routing.cluster_view import ClusterView, PoolLoad


def assign(shape: RequestShape, view: ClusterView, pools: Sequence[str]) -> Assignment:
    """Chooses among `pools`, the configured ones in order of preference; ties go to the earlier.

    A pool that has not reported is the last resort: it may still be starting, and Serve holds the
    request until it is up. Raises `ServerError` when there are no pools at all.
    """
    if not pools:
        raise ServerError("no pool is configured", code="no_pool", status=503)
    loads = view.pools()
    known = [loads[name] for name in pools if name in loads]
    if not known:
        return Assignment(pool=pools[0], reason="no pool has reported yet")
    best = min(known, key=lambda load: finish_ms(shape, load))
    if len(known) == 1:
        return Assignment(pool=best.pool, reason="the only pool that reports")
    predicted = finish_ms(shape, best)
    return Assignment(pool=best.pool, reason=f"finishes soonest, in about {predicted:.0f} ms")


def finish_ms(shape: RequestShape, load: PoolLoad) -> float:
    """Predicted time from now to the request's last token in this pool.

    Sequences of a batch advance together, so a newcomer gets the rate that one sequence has now,
    thinned by the requests that are on their way. It waits for its turn behind those that wait: a
    place falls free each time one of the running ends.
    """
    decode_ms = shape.max_tokens * _token_ms(load)
    ahead = load.waiting + (0 if _has_room(load) else 1 + load.assigned)
    return decode_ms * (1.0 + ahead / max(1, load.running))


def _token_ms(load: PoolLoad) -> float:
    """Time between two tokens of one sequence, were the request to join."""
    if load.running > 0 and load.tokens_per_s > 0:
        now = 1e3 * load.running / load.tokens_per_s
    else:
        # An idle pool gives a token per step at least; one that never took a step has no price
        # and is tried, which gives it one.
        now = load.step_ms
    crowding = (load.running + load.assigned + 1) / max(load.running + 1, load.replicas)
    return now * max(1.0, crowding)


def _has_room(load: PoolLoad) -> bool:
    """Whether a newcomer starts at once, by free KV blocks and by what waits already."""
    if load.free_blocks == 0 or load.total_blocks == 0:
        return False
    return load.waiting == 0 or load.free_blocks > load.total_blocks // 10
