"""What Prometheus would read from the metrics ports of a cluster's nodes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from deploy.metrics.table import PREFIX


@dataclass(frozen=True)
class Series:
    name: str
    tags: dict[str, str]
    value: float


class Scrape:
    """What the nodes' metrics ports say of this application now."""

    def __init__(self, text: str, outsider: str) -> None:
        """`outsider`: id of the worker that runs the tests. Parts of the application that a test
        makes for itself export too, and are no replicas."""
        self._series = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                is_ours = one.name.startswith(f"ray_{PREFIX}")
                if is_ours and one.labels.get("WorkerId") != outsider:
                    self._series[one.name].append(Series(one.name, one.labels, one.value))

    @property
    def names(self) -> set[str]:
        return set(self._series)

    def of(self, name: str, **tags: str) -> list[Series]:
        found = self._series.get(f"ray_{PREFIX}{name}", [])
        return [one for one in found if tags.items() <= one.tags.items()]

    def sum(self, name: str, **tags: str) -> float:
        return sum(one.value for one in self.of(name, **tags))


def scrape() -> Scrape:
    import ray

    ports = [(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in ray.nodes()]
    text = "".join(httpx.get(f"http://{host}:{port}/metrics").text for host, port in ports)
    return Scrape(text, outsider=ray.get_runtime_context().get_worker_id())
