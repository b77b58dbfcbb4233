"""The Grafana dashboard, from the names of the metrics.

`python -m deploy.metrics.dashboard` writes `deploy/grafana/smart-serve.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from deploy.metrics.promql import CHOSEN, POOLS, now, quantile, rate, ratio
from deploy.metrics.table import PREFIX

PATH = Path(__file__).parents[1] / "grafana" / "smart-serve.json"
SCHEMA_VERSION = 39
"""Of Grafana 11; newer ones migrate it when it is imported."""
WIDTH, HEIGHT, ACROSS = 8, 8, 3
"""Of a panel, in Grafana's grid of 24 columns; panels in a row."""
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(msgspec.Struct, frozen=True):
    """A time series; each query is PromQL and what its lines are called."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


POOL = "{{pool}} {{device_type}}"


def panel(title: str, unit: str, *queries: str | tuple[str, str]) -> Panel:
    """Lines are called by their pool, where a query brings no other name."""
    named = ((POOL, one) if isinstance(one, str) else one for one in queries)
    return Panel(title, unit, tuple(named))


def by(tag: str, name: str) -> tuple[str, str]:
    """A counter's lines, told apart by one more tag."""
    return f"{POOL} {{{{{tag}}}}}", rate(name, f"{POOLS}, {tag}")


def quantiles(name: str) -> tuple[tuple[str, str], ...]:
    """Median and tail of a histogram."""
    return tuple((f"{POOL} p{share * 100:g}", quantile(share, name)) for share in (0.5, 0.95, 0.99))


ROWS: dict[str, tuple[Panel, ...]] = {
    "Requests": (
        panel("Answers", "reqps", ("{{route}} {{status}}", rate("http_requests", "route, status"))),
        panel("Time to the first token", "s", *quantiles("first_token_seconds")),
        panel("Time between tokens, mean of an answer", "s", *quantiles("inter_token_seconds")),
        panel("Longest gap in an answer", "s", *quantiles("longest_gap_seconds")),
        panel(
            "Batch and queue",
            "short",
            (f"{POOL} running", now("running")),
            (f"{POOL} waiting", now("waiting")),
        ),
        panel("How sequences end", "ops", by("end", "sequences")),
    ),
    "Speculation": (
        panel("Tokens per second", "short", rate("tokens")),
        panel(
            "Speedup over plain decoding",
            "short",
            (f"{POOL} measured", ratio("plain_seconds", "measured_seconds")),
            (f"{POOL} predicted", ratio("plain_seconds", "predicted_seconds")),
        ),
        panel("Draft tokens per second", "short", by("outcome", "draft_tokens")),
        panel(
            "Share of draft tokens accepted",
            "percentunit",
            f"{rate('draft_tokens', outcome='accepted')} / {rate('draft_tokens')}",
        ),
        panel("Draft nodes of a step with trees", "short", ratio("draft_tokens", "drafted_steps")),
        panel("Depth of its deepest tree", "short", ratio("tree_depth", "drafted_steps")),
        panel("Share of steps with trees", "percentunit", ratio("drafted_steps", "steps")),
        panel("Tokens per step", "short", ratio("tokens", "steps")),
        panel(
            "Calibration: accepted over expected",
            "short",
            ratio("judged_tokens", "expected_tokens"),
        ),
    ),
    "Costs": (
        panel("Time of a step", "s", ratio("step_seconds", "steps")),
        panel("Where it goes: seconds per second", "short", by("part", "step_seconds")),
        panel(
            "Residuals: measured over predicted",
            "short",
            (
                f"{POOL} {{{{part}}}}",
                ratio("measured_seconds", "predicted_seconds", f"{POOLS}, part"),
            ),
        ),
        panel("Hop to the drafter", "s", now("drafter_wire_seconds", over="avg")),
    ),
    "Memory": (
        panel("KV blocks", "short", (f"{POOL} {{{{state}}}}", now("kv_blocks", f"{POOLS}, state"))),
        panel(
            "Prompt tokens found in the cache",
            "percentunit",
            ratio("cached_tokens", "prompt_tokens"),
        ),
        panel("Pre-emptions", "ops", rate("preemptions")),
        panel(
            "Pictures",
            "ops",
            ("{{device_type}} {{source}}", rate("pictures", "device_type, source")),
            ("{{pool}} kept", rate("kept_pictures", "pool")),
        ),
        panel(
            "Waiting for features: seconds per second",
            "short",
            ("{{device_type}}", rate("encode_seconds", "device_type")),
        ),
        panel(
            "Picture features kept",
            "bytes",
            ("{{device_type}}", now("feature_cache_bytes", "device_type")),
        ),
    ),
    "Cluster": (
        panel(
            "Where requests are sent",
            "reqps",
            ("{{pool}}", rate("assignments", "pool")),
            ("without the router", rate("router_absences", "application")),
        ),
        panel("Epoch of the router's envelope", "none", now("plan_epoch", over="max")),
        panel("Age of the envelope", "s", now("plan_age_seconds", over="max")),
        panel("Draft nodes it allows a step", "short", now("plan_max_nodes", over="avg")),
        panel("Slow-down of drafters to come", "short", now("plan_draft_cost_factor", over="max")),
        panel(
            "Replicas with a drafter",
            "short",
            now("drafter_connected"),
            ("{{device_type}} leases", now("drafter_leases", "device_type")),
        ),
        panel(
            "Merged drafts: targets and sequences of one",
            "short",
            (
                "{{device_type}} targets",
                ratio("drafter_questions", "drafter_drafts", "device_type"),
            ),
            (
                "{{device_type}} sequences",
                ratio("drafter_sequences", "drafter_drafts", "device_type"),
            ),
        ),
        panel(
            "Faults",
            "ops",
            (f"{POOL} answers resumed", rate("resumes")),
            (f"{POOL} drafters lost", rate("drafter_outages")),
            (f"{POOL} steps without their trees", rate("draft_failures")),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """In the classic model, which every Grafana since 8 imports."""
    return {
        "title": "smart-serve",
        "uid": "smart-serve",
        "tags": ["smart-serve", "ray"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_datasource(), *map(_variable, CHOSEN)]},
        "panels": list(_placed()),
    }


def _placed() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS.items():
        number, place = number + 1, {"x": 0, "y": top, "w": WIDTH * ACROSS, "h": 1}
        yield {"id": number, "type": "row", "title": title, "gridPos": place, "panels": []}
        for i, one in enumerate(panels):
            x, y = WIDTH * (i % ACROSS), top + 1 + HEIGHT * (i // ACROSS)
            place = {"x": x, "y": y, "w": WIDTH, "h": HEIGHT}
            yield {"id": number + 1 + i, "gridPos": place, **_time_series(one)}
        number, top = number + len(panels), top + 1 + HEIGHT * -(-len(panels) // ACROSS)


def _time_series(one: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + i), "datasource": _DATASOURCE, "expr": expr, "legendFormat": name}
        for i, (name, expr) in enumerate(one.queries)
    ]
    return {
        "type": "timeseries",
        "title": one.title,
        "datasource": _DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": one.unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}},
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data"}


def _variable(tag: str) -> dict[str, Any]:
    source = f"label_values(ray_{PREFIX}running, {tag})"
    return {
        "name": tag,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": source, "refId": tag},
        "definition": source,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
        "refresh": 2,
        "sort": 1,
    }


def text() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
