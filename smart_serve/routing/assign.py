"""Where a request goes: where it takes the least time and money, of its own and of others'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from smart_serve.errors import ServerError
from smart_serve.messages import Assignment, LoadReport, RequestShape
from smart_serve.routing.pool_load import PoolLoad, load_of

Holder = tuple[LoadReport, int, int]
"""(report, requests on their way there, tokens cached), as `ReportBook.holders` gives them."""


class Offer(msgspec.Struct, frozen=True):
    """A pool that a request may go to."""

    pool: str
    price_per_hour: float = 1.0
    """Of one replica, in any currency; prices are compared among pools alone."""


class Choice(msgspec.Struct, frozen=True):
    """One place where a request could go."""

    pool: str
    replica: str | None
    finish_ms: float
    cost: float
    """Its own time and that which others lose by it, at the price of a replica. To be least."""
    cached_tokens: int


def assign(
    shape: RequestShape,
    loads: Mapping[str, PoolLoad],
    offers: Sequence[Offer],
    holders: Iterable[Holder] = (),
) -> Assignment:
    """Chooses among `offers`, in order of preference; ties go to the earlier, and to any replica.

    `holders` have a beginning of the prompt in their caches, which counts for the time that it
    saves, and for no more: a replica with a queue is left for one without. A pool that has not
    reported is the last resort: it may still be starting, and Serve holds the request until it is
    up. Raises `ServerError` when there are no pools at all.
    """
    if not offers:
        raise ServerError("no pool is configured", code="no_pool", status=503)
    choices = list(_choices(shape, loads, offers, holders))
    if not choices:
        return Assignment(pool=offers[0].pool, reason="no pool has reported yet")
    best = min(choices, key=lambda choice: choice.cost)
    return Assignment(pool=best.pool, reason=_reason(best, choices), replica=best.replica)


def finish_ms(shape: RequestShape, load: PoolLoad, cached_tokens: int = 0) -> float:
    """Predicted time from now to the request's last token in this pool.

    It waits for its turn behind those that wait: a place falls free each time one of the running
    ends. Then its prompt is read, and then it advances together with its batch.
    """
    decode_ms = shape.max_tokens * load.token_ms_at(_batch(load))
    # Prompts of the same time are read one after another.
    prompts = 1.0 + load.assigned / load.replicas
    prefill_ms = prompts * _prefill_ms(shape, load, cached_tokens)
    return prefill_ms + decode_ms * (1.0 + _ahead(shape, load) / max(1, load.places))


def others_ms(shape: RequestShape, load: PoolLoad, cached_tokens: int = 0) -> float:
    """Time that the others of its batch lose by it, summed up over them.

    They stand still while its prompt is read, and each of their tokens takes longer in a larger
    batch. Without this the fastest pool fills until it is as slow as the next one: good for each
    newcomer, and bad for all (Pigou, 1920; as in routing games).
    """
    batch = _batch(load)
    slower_ms = load.token_ms_at(batch) - load.token_ms_at(max(1.0, batch - 1.0))
    return (batch - 1.0) * (shape.max_tokens * slower_ms + _prefill_ms(shape, load, cached_tokens))


def _choices(
    shape: RequestShape,
    loads: Mapping[str, PoolLoad],
    offers: Sequence[Offer],
    holders: Iterable[Holder],
) -> Iterator[Choice]:
    prices = {offer.pool: offer.price_per_hour for offer in offers}
    for name, price in prices.items():
        if name in loads:
            yield _choice(shape, loads[name], price)
    for report, on_their_way, cached in holders:
        if report.pool in prices:
            load = load_of([report], on_their_way)
            yield _choice(shape, load, prices[report.pool], report.replica_id, cached)


def _choice(
    shape: RequestShape,
    load: PoolLoad,
    price: float,
    replica: str | None = None,
    cached_tokens: int = 0,
) -> Choice:
    own_ms = finish_ms(shape, load, cached_tokens)
    cost = price * (own_ms + others_ms(shape, load, cached_tokens))
    return Choice(load.pool, replica, own_ms, cost, cached_tokens)


def _batch(load: PoolLoad) -> float:
    """That the request would run in."""
    return min(load.batch_per_replica, max(1, load.places) / load.replicas)


def _prefill_ms(shape: RequestShape, load: PoolLoad, cached_tokens: int) -> float:
    return max(0, shape.prompt_tokens - cached_tokens) * load.prompt_token_ms


def _ahead(shape: RequestShape, load: PoolLoad) -> float:
    """Requests that must end before this one starts."""
    newcomers = load.waiting + load.assigned
    free_places = load.places - load.running
    blocks = -(-(shape.prompt_tokens + shape.max_tokens) // load.block_tokens)
    by_blocks = load.free_blocks // max(1, blocks)
    return max(0.0, newcomers + 1.0 - min(free_places, by_blocks))


def _reason(best: Choice, choices: Sequence[Choice]) -> str:
    told = f"done in about {best.finish_ms:.0f} ms"
    if best.replica is not None:
        told = f"{best.cached_tokens} tokens are cached there, {told}"
    others = [choice for choice in choices if choice.pool != best.pool]
    if not others:
        return f"the only pool that reports; {told}"
    second = min(others, key=lambda choice: choice.cost)
    # Not against a pool that costs nothing, or of which nothing is known.
    dearer = f", {second.cost / best.cost:.1f} times the cost" if best.cost > 0.0 else ""
    return f"{told}; in {second.pool} {second.finish_ms:.0f} ms{dearer}"
