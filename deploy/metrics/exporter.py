"""One replica's metrics, handed to Ray. A call takes some microseconds: once a request or once a
second, never once a token."""

from __future__ import annotations

from typing import Any

from ray.serve import metrics as ray_metrics

from deploy.metrics.table import COMMON_TAGS, METRICS, PREFIX, Metric, Part

TINY = 5e-324
"""Ray's counters refuse to be raised by 0, but a series that is missing until the first accident
cannot be told from one that is never exported. This is the least that is more; added to anything
else it vanishes."""


class Exporter:
    """Owned by one replica. An unknown name is a `KeyError`, a missing tag a `ValueError`."""

    def __init__(self, part: Part, **common: str) -> None:
        """`common`: values of the tags that all metrics of the part have."""
        assert set(common) == set(COMMON_TAGS[part])
        self._metrics = {one.name: _ray_metric(one, common) for one in METRICS[part]}
        self._taken: dict[tuple[str, ...], float] = {}

    def set(self, name: str, value: float, **tags: str) -> None:
        """A gauge."""
        self._metrics[name].set(value, tags)

    def add(self, name: str, amount: float = 1, **tags: str) -> None:
        """To a counter; 0 makes it known."""
        self._metrics[name].inc(amount or TINY, tags)

    def raise_to(self, name: str, total: float, **tags: str) -> None:
        """A counter whose running total is kept elsewhere."""
        key = (name, *tags.values())
        taken = self._taken.get(key)
        if taken is None or total > taken:
            self.add(name, total - (taken or 0.0), **tags)
            self._taken[key] = total

    def observe(self, name: str, value: float, **tags: str) -> None:
        """A histogram's next value."""
        self._metrics[name].observe(value, tags)


def _ray_metric(one: Metric, common: dict[str, str]) -> Any:
    name, tags = PREFIX + one.name, (*common, *one.tags)
    made: Any
    if one.kind == "histogram":
        made = ray_metrics.Histogram(name, one.meaning, list(one.bounds), tags)
    else:
        kind = ray_metrics.Counter if one.kind == "counter" else ray_metrics.Gauge
        made = kind(name, one.meaning, tags)
    # A copy: Serve adds to it.
    made.set_default_tags(dict(common))
    return made
