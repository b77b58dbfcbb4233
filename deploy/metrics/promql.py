"""PromQL over the table's names, narrowed to what the dashboard's viewer has chosen."""

from __future__ import annotations

from deploy.metrics.table import COMMON_TAGS, METRICS

POOLS = "pool, device_type"
CHOSEN = ("application", "pool", "device_type")
"""Tags whose values the viewer chooses, by variables of these names."""
_BY_NAME = {one.name: (part, one) for part, metrics in METRICS.items() for one in metrics}


def rate(name: str, by: str = POOLS, **match: str) -> str:
    """A counter's, per second."""
    return f"sum by ({by}) (rate({_series(name, '', match)}[$__rate_interval]))"


def now(name: str, by: str = POOLS, over: str = "sum", **match: str) -> str:
    """A gauge's, over the replicas."""
    return f"{over} by ({by}) ({_series(name, '', match)})"


def ratio(over: str, under: str, by: str = POOLS) -> str:
    """Of two counters."""
    return f"{rate(over, by)} / {rate(under, by)}"


def quantile(share: float, name: str) -> str:
    """Of a histogram."""
    buckets = f"rate({_series(name, '_bucket', {})}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by ({POOLS}, le) ({buckets}))"


def _series(name: str, suffix: str, match: dict[str, str]) -> str:
    part, metric = _BY_NAME[name]
    tags = (*COMMON_TAGS[part], *metric.tags)
    chosen = [f'{tag}=~"${tag}"' for tag in CHOSEN if tag in ("application", *tags)]
    chosen += [f'{tag}="{value}"' for tag, value in match.items()]
    return f"{metric.exported_name}{suffix}{{{', '.join(chosen)}}}"
