"""The load of a pool, or of one replica, and what its reports say a token costs there."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from smart_serve.messages import LoadReport
from smart_serve.speculation.cost import Curve


class PoolLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A pool's replicas taken together; Serve spreads requests evenly within it."""

    pool: str
    replicas: int
    running: int
    waiting: int
    assigned: int
    """Requests sent here that no report can hold yet."""
    places: int
    """Of all batches."""
    free_blocks: int
    total_blocks: int
    block_tokens: int
    tokens_per_s: float
    step_ms: float
    """Mean over the replicas that have taken steps, as are the next two; 0: none has."""
    token_ms: float
    batch: float
    plain_step: Curve | None
    """A step of plain decoding by batch, of the replica that reported last: a pool has one kind."""
    prompt_token_ms: float

    def token_ms_at(self, batch: float) -> float:
        """Time between two tokens of one sequence in a batch of this size.

        Plain decoding by the cost table, at the speedup over it that is measured now. A speedup
        shrinks as the batch grows, and the measurement follows. 0: nothing is known.
        """
        if self.plain_step is None:
            return self.token_ms or self.step_ms
        plain_ms = self.plain_step(batch)
        if self.token_ms <= 0.0:
            return plain_ms
        return plain_ms * self.token_ms / self.plain_step(self.batch)

    @property
    def batch_per_replica(self) -> float:
        """With the newcomers, were one more request to come."""
        return (self.running + self.assigned) / self.replicas + 1.0


class PoolSums:
    """Running sums over a pool's reports, so that a report costs the same in any crowd.

    Whole numbers (thousandths, where the report has fractions): adding and taking away for days
    must not drift.
    """

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._sums = [0] * len(_parts(_NOBODY))
        self._last = _NOBODY

    def add(self, report: LoadReport) -> None:
        self._sums = [a + b for a, b in zip(self._sums, _parts(report), strict=True)]
        self._last = report

    def take_away(self, report: LoadReport) -> None:
        self._sums = [a - b for a, b in zip(self._sums, _parts(report), strict=True)]

    def load(self, assigned: int = 0) -> PoolLoad | None:
        """None: no replica is left."""
        (replicas, running, waiting, places, free, total, rate, stepped, step, token, batch) = (
            self._sums
        )
        if replicas == 0:
            return None
        mean, plain = 1e-3 / max(1, stepped), self._last.plain_steps
        return PoolLoad(
            pool=self._pool,
            replicas=replicas,
            running=running,
            waiting=waiting,
            assigned=assigned,
            places=places,
            free_blocks=free,
            total_blocks=total,
            block_tokens=self._last.block_tokens,
            tokens_per_s=1e-3 * rate,
            step_ms=mean * step,
            token_ms=mean * token,
            batch=mean * batch,
            plain_step=Curve(*zip(*plain, strict=True)) if plain else None,
            prompt_token_ms=self._last.prompt_token_ms,
        )


def load_of(reports: Iterable[LoadReport], assigned: int = 0) -> PoolLoad:
    """Of some replicas of one pool, at least one."""
    first, *others = reports
    sums = PoolSums(first.pool)
    for report in (first, *others):
        sums.add(report)
    load = sums.load(assigned)
    assert load is not None
    return load


def _parts(report: LoadReport) -> tuple[int, ...]:
    """What is summed up, in the order that `PoolSums.load` takes it apart."""
    stepped = report.step_ms > 0
    return (
        1,
        report.running,
        report.waiting,
        report.max_running,
        report.free_blocks,
        report.total_blocks,
        round(1e3 * report.tokens_per_s),
        int(stepped),
        round(1e3 * report.step_ms) if stepped else 0,
        round(1e3 * report.token_ms) if stepped else 0,
        round(1e3 * report.batch) if stepped else 0,
    )


_NOBODY = LoadReport(
    replica_id="",
    pool="",
    device_type="",
    running=0,
    waiting=0,
    free_blocks=0,
    total_blocks=0,
    tokens_per_s=0.0,
    step_ms=0.0,
    draft_ms=0.0,
    verify_ms=0.0,
    accepted_per_step=0.0,
    nodes_per_step=0.0,
    plan_epoch=0,
)
