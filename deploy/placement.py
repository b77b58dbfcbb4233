"""Which replica would fit on which node: a plan made before anything is started. No Ray."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from deploy.node_choice import ACCELERATOR_LABEL, NodeChoice


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One machine of the cluster, by what Ray counts of it."""

    name: str
    cpus: float
    gpus: int = 0
    accelerator_type: str | None = None
    """As Ray names it: "H100"."""
    labels: dict[str, str] = {}

    def suits(self, choice: NodeChoice) -> bool:
        """Whether it is one of the chosen nodes, be it free or not."""
        if self.accelerator_type is None:
            return choice.fits(self.labels, {})
        labels = {ACCELERATOR_LABEL: self.accelerator_type, **self.labels}
        return choice.fits(labels, {f"accelerator_type:{self.accelerator_type}": 1.0})


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What the replicas of one deployment ask for, each."""

    deployment: str
    replicas: int
    """At first; so many must have a place."""
    most: int | None = None
    """How far autoscaling may go; None: it does not."""
    cpus: float
    gpus: float = 0.0
    nodes: dict[str, Any] = {}
    """Fields of `NodeChoice`; none: any node will do."""

    @property
    def choice(self) -> NodeChoice:
        return NodeChoice(**self.nodes)

    def __str__(self) -> str:
        gpu = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.cpus:g} CPU{gpu}{self.kind}"

    @property
    def kind(self) -> str:
        """Which nodes, in words."""
        choice = self.choice
        if choice.accelerator_type is not None:
            return f" {choice.accelerator_type}"
        wanted = ", ".join(f"{name}={value}" for name, value in choice.label_selector.items())
        return f" {wanted}" + " or a fallback" * bool(choice.fallbacks) if wanted else ""


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """Where a deployment's replicas would go."""

    demand: Demand
    nodes: dict[str, int]
    """Replicas by node."""

    @property
    def missing(self) -> int:
        """Replicas without a place."""
        return self.demand.replicas - sum(self.nodes.values())


@dataclass(slots=True)
class _Room:
    """What is left of a node."""

    node: Node
    cpus: float
    gpus: list[float] = field(default_factory=list)
    """Of each GPU, the share that is free."""

    def takes(self, demand: Demand) -> bool:
        """Reserves the demand, if it fits."""
        wanted = demand.gpus
        # Ray gives a share of one GPU, or whole ones.
        count, share = (int(wanted), 1.0) if wanted > 1 else (int(wanted > 0), wanted)
        # The fullest that has room: whole ones stay for those that need them.
        fitting = sorted((free, i) for i, free in enumerate(self.gpus) if free + 1e-9 >= share)
        if not self.node.suits(demand.choice) or self.cpus + 1e-9 < demand.cpus:
            return False
        if len(fitting) < count:
            return False
        self.cpus -= demand.cpus
        for _, index in fitting[:count]:
            self.gpus[index] -= share
        return True


def place(demands: Sequence[Demand], nodes: Iterable[Node]) -> list[Placed]:
    """One way to place the demands; in their order. What is hardest to please goes first."""
    rooms = [_Room(node, node.cpus, [1.0] * node.gpus) for node in nodes]
    placed: dict[str, Placed] = {}
    for demand in sorted(demands, key=_hardness, reverse=True):
        found: dict[str, int] = {}
        for _ in range(demand.replicas):
            # Without need of a GPU, a node without one is better; else the emptiest.
            order = sorted(rooms, key=lambda r: (bool(r.gpus) and not demand.gpus, -r.cpus))
            room = next((room for room in order if room.takes(demand)), None)
            if room is None:
                break
            found[room.node.name] = found.get(room.node.name, 0) + 1
        placed[demand.deployment] = Placed(demand=demand, nodes=found)
    return [placed[demand.deployment] for demand in demands]


def _hardness(demand: Demand) -> tuple[bool, float, float]:
    return bool(demand.kind), demand.gpus, demand.cpus


def shortage(placed: Placed, nodes: Sequence[Node]) -> str:
    """Why replicas of it have no place, in one sentence."""
    demand = placed.demand
    who = f"{demand.deployment}: {placed.missing} of {demand.replicas} replicas have no place; each"
    kinds = sorted({node.accelerator_type for node in nodes if node.accelerator_type})
    if not any(node.suits(demand.choice) for node in nodes):
        there = f"there are {', '.join(kinds)}" if kinds else "no node has an accelerator"
        return f"{who} needs a node of{demand.kind}, and {there}"
    if not any(_Room(node, node.cpus, [1.0] * node.gpus).takes(demand) for node in nodes):
        return f"{who} needs {demand}, which no node has at all"
    return f"{who} needs {demand}, which is left on no node beside the others"
