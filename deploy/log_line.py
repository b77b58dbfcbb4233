"""Log lines for people and for machines: the same figures as text and as JSON fields."""

from __future__ import annotations

import logging
from collections.abc import Mapping

SERVES_OWN = frozenset(
    (
        "application",
        "component_id",
        "component_name",
        "deployment",
        "replica",
        "request_id",
        "route",
    )
)
"""Fields that Serve's log filters set on every record, over what stands there."""


def log_line(logger: logging.Logger, figures: Mapping[str, object]) -> None:
    """`name=value` for each figure that is not None; where logs are JSON, fields of these names.

    No word of a request's content belongs here.
    """
    told = {name: value for name, value in figures.items() if value is not None}
    assert SERVES_OWN.isdisjoint(told), "Serve would write over it"
    text = " ".join(f"{name}={value}" for name, value in told.items())
    logger.info("%s", text, extra=told)
