"""Every metric that the application exports, by the deployment that does.

Ray serves them on each node's metrics port, with `ray_` before the name and `_total` after a
counter's; Serve adds the tags application, deployment and replica.
"""

from __future__ import annotations

from typing import Literal

import msgspec

PREFIX = "smart_serve_"
Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["1", "bytes", "requests", "sequences", "steps", "tokens", "blocks", "seconds"]
Part = Literal["target", "ingress", "router", "vision-encoder", "drafter"]

LATENCY_BOUNDS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
TOKEN_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)


class Metric(msgspec.Struct, frozen=True):
    """One name. A counter's value since its replica started; of rates of two, a ratio is made."""

    name: str
    kind: Kind
    unit: Unit
    meaning: str
    tags: tuple[str, ...] = ()
    """Beside those of its part."""
    bounds: tuple[float, ...] = ()
    """Of a histogram's buckets."""

    @property
    def exported_name(self) -> str:
        """As Prometheus scrapes it; a histogram's series have a suffix more."""
        total = "_total" if self.kind == "counter" else ""
        return f"ray_{PREFIX}{self.name}{total}"


COMMON_TAGS: dict[Part, tuple[str, ...]] = {
    "target": ("pool", "device_type"),
    "ingress": (),
    "router": (),
    "vision-encoder": ("device_type",),
    "drafter": ("device_type",),
}
"""What all metrics of a part are told apart by."""
POOL_TAGS = ("pool", "device_type")

METRICS: dict[Part, tuple[Metric, ...]] = {
    "target": (
        Metric("tokens", "counter", "tokens", "emitted"),
        Metric("prompt_tokens", "counter", "tokens", "prompts of ended sequences"),
        Metric("cached_tokens", "counter", "tokens", "of those, found in the prefix cache"),
        Metric("kept_pictures", "counter", "1", "asked about, whose features were here already"),
        Metric(
            "draft_tokens",
            "counter",
            "tokens",
            "draft nodes verified: accepted or rejected",
            ("outcome",),
        ),
        Metric(
            "expected_tokens",
            "counter",
            "tokens",
            "draft tokens that calibrated probabilities said would be accepted",
        ),
        Metric(
            "judged_tokens",
            "counter",
            "tokens",
            "draft tokens accepted of the same trees; over expected_tokens, 1 is well calibrated",
        ),
        Metric("steps", "counter", "steps", "forward passes of the target"),
        Metric("drafted_steps", "counter", "steps", "of those, with draft trees"),
        Metric(
            "tree_depth",
            "counter",
            "1",
            "deepest node, summed over drafted steps; over drafted_steps, the mean depth",
        ),
        Metric(
            "step_seconds",
            "counter",
            "seconds",
            "time of all steps: draft, wire, verify, controller or other",
            ("part",),
        ),
        Metric(
            "predicted_seconds",
            "counter",
            "seconds",
            "what the cost tables said of mostly decoding steps: verify, draft or overhead",
            ("part",),
        ),
        Metric(
            "measured_seconds",
            "counter",
            "seconds",
            "what the same steps took; over predicted_seconds, the residual",
            ("part",),
        ),
        Metric(
            "plain_seconds",
            "counter",
            "seconds",
            "what the same tokens would have cost undrafted; over measured_seconds or "
            "predicted_seconds of all parts, the speedup",
        ),
        Metric(
            "sequences",
            "counter",
            "sequences",
            "that ended: stop, length, error or cancelled",
            ("end",),
        ),
        Metric("preemptions", "counter", "sequences", "whose KV blocks were taken for others"),
        Metric("draft_failures", "counter", "steps", "to which the drafter gave no usable trees"),
        Metric("drafter_outages", "counter", "1", "leases of a drafter that were lost"),
        Metric("drafter_connected", "gauge", "1", "1: there is a drafter; 0: decoding plainly"),
        Metric("drafter_wire_seconds", "gauge", "seconds", "a step's hop to a remote drafter"),
        Metric("running", "gauge", "sequences", "in the batch"),
        Metric("waiting", "gauge", "sequences", "not yet admitted"),
        Metric(
            "kv_blocks",
            "gauge",
            "blocks",
            "KV cache: held, cached (for their prefix) or free",
            ("state",),
        ),
        Metric("plan_epoch", "gauge", "1", "of the router's last envelope"),
        Metric("plan_age_seconds", "gauge", "seconds", "since that envelope came"),
        Metric("plan_max_nodes", "gauge", "1", "draft nodes that it allows a step"),
        Metric(
            "plan_draft_cost_factor", "gauge", "1", "how much slower it says drafters are to be"
        ),
    ),
    "ingress": (
        Metric("http_requests", "counter", "requests", "answered", ("route", "status")),
        Metric(
            "first_token_seconds",
            "histogram",
            "seconds",
            "from a request's dispatch to its first tokens, pictures and queue included",
            POOL_TAGS,
            LATENCY_BOUNDS_S,
        ),
        Metric(
            "inter_token_seconds",
            "histogram",
            "seconds",
            "between an answer's tokens, its mean; one value an answer",
            POOL_TAGS,
            TOKEN_BOUNDS_S,
        ),
        Metric(
            "longest_gap_seconds",
            "histogram",
            "seconds",
            "between two parts of an answer, its longest; one value an answer",
            POOL_TAGS,
            TOKEN_BOUNDS_S,
        ),
        Metric("resumes", "counter", "1", "answers that another replica went on with", POOL_TAGS),
        Metric("router_absences", "counter", "1", "requests assigned by the last view alone"),
    ),
    "router": (Metric("assignments", "counter", "requests", "sent to a pool", ("pool",)),),
    "vision-encoder": (
        Metric("pictures", "counter", "1", "asked for: encoded, or found (cached)", ("source",)),
        Metric("feature_cache_bytes", "gauge", "bytes", "features that are kept"),
        Metric("encode_seconds", "counter", "seconds", "spent on requests for features"),
    ),
    "drafter": (
        Metric("drafter_leases", "gauge", "1", "target replicas that draft here"),
        Metric("drafter_questions", "counter", "1", "of targets, each for its whole batch"),
        Metric(
            "drafter_drafts",
            "counter",
            "1",
            "that answered them; fewer where some came together and were merged",
        ),
        Metric("drafter_sequences", "counter", "sequences", "drafted for, over all drafts"),
    ),
}


def all_metrics() -> tuple[Metric, ...]:
    """All parts' metrics; no two share a name."""
    return tuple(metric for part in METRICS.values() for metric in part)
