"""Which nodes a deployment's replicas may stand on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Labels = dict[str, str]
ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""By which Ray tells what a node has."""


class NodeChoice(BaseModel):
    """By the type of their accelerator, or by their labels, with second choices."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accelerator_type: str | None = None
    """As Ray names it: "H100", "L40S"; null: any node."""
    label_selector: Labels = {}
    """Labels that a node must have, as Ray selects by them: a value, "!value", "in(a,b)" or
    "!in(a,b)", for instance `{"ray.io/accelerator-type": "in(H100,H200)"}`."""
    fallbacks: tuple[Labels, ...] = Field(default=())
    """Further label selectors, tried in this order where no node has room by `label_selector`."""

    @model_validator(mode="after")
    def _check_fallbacks(self) -> Self:
        if self.fallbacks and not self.label_selector:
            raise ValueError("fallbacks come after a label_selector")
        if self.fallbacks and self.accelerator_type is not None:
            # Ray treats it as a resource, which every fallback would ask for as well.
            raise ValueError("with fallbacks, say the accelerator_type by its label")
        return self

    def actor_options(self) -> dict[str, Any]:
        """As Ray takes them."""
        options: dict[str, Any] = {}
        if self.accelerator_type is not None:
            options["accelerator_type"] = self.accelerator_type
        if self.label_selector:
            options["label_selector"] = self.label_selector
        if self.fallbacks:
            options["fallback_strategy"] = [{"label_selector": one} for one in self.fallbacks]
        return options

    def fits(self, labels: Mapping[str, str], resources: Mapping[str, float]) -> bool:
        """Whether a node is one of those chosen, be it free or not."""
        if self.accelerator_type is not None:
            return f"accelerator_type:{self.accelerator_type}" in resources
        choices = (self.label_selector, *self.fallbacks)
        return any(
            all(_matches(labels.get(name), wanted) for name, wanted in choice.items())
            for choice in choices
        )


def _matches(value: str | None, wanted: str) -> bool:
    positive = wanted.removeprefix("!")
    if positive.startswith("in(") and positive.endswith(")"):
        values = [one.strip() for one in positive[3:-1].split(",")]
    else:
        values = [positive]
    return (value in values) == (positive == wanted)
