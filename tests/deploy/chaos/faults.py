"""What goes wrong, in an order that a seed decides."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from tests.deploy.chaos.cluster import ChaosCluster

logger = logging.getLogger(__name__)

KILLS = ("target", "drafter", "vision", "router", "node", "controller", "ingress")
KINDS = (*KILLS, "update")
NODE_AWAY_S = 2.0
ALONE = 0.75
"""Share of kills after which the cluster is given the time to mend."""
MEND_S = 300.0
"""Within which a cluster must be whole again. A replica takes 10 s to start, and ten times that
where other work shares its cores."""


@dataclass(frozen=True)
class Kill:
    """One thing that was killed."""

    kind: str
    at_s: float
    """Of `time.monotonic`."""
    is_alone: bool
    """The cluster was whole before, and nothing else was killed until it was whole again."""


class Faults:
    """Kills parts of the cluster; now and then the next one before the last is mended."""

    def __init__(self, cluster: ChaosCluster, seed: int, kinds: tuple[str, ...] = KILLS) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self._kinds = kinds
        self._kills: dict[str, Callable[[], None]] = {
            "target": lambda: self._kill_replica("target-default"),
            "drafter": lambda: self._kill_replica("drafter"),
            "vision": lambda: self._kill_replica("vision-encoder"),
            "router": lambda: self._kill_replica("router"),
            "ingress": lambda: self._kill_replica("ingress"),
            "controller": self._kill_controller,
            "node": self._lose_node,
            "update": self._cluster.update,
        }
        self.done: list[Kill] = []
        self.mends = True
        """Whether it was whole again each time."""
        self.mend_s: list[float] = []
        """How long the cluster took to be whole again."""

    def run(self, until_s: float) -> None:
        """Every kind once, in random order, again and again, for as long as the cluster mends."""
        bag: list[str] = []
        is_whole = True
        while time.monotonic() < until_s and self.mends:
            if not bag:
                bag = self._random.sample(self._kinds, len(self._kinds))
            kind, was_whole = bag.pop(), is_whole
            is_whole = self._random.random() < ALONE
            logger.info("kills: %s", kind)
            self.done.append(Kill(kind, time.monotonic(), is_alone=was_whole and is_whole))
            self._kills[kind]()
            time.sleep(self._random.uniform(0.5, 3.0))
            if is_whole:
                self._wait_until_whole()
        self._wait_until_whole()

    def _wait_until_whole(self) -> None:
        begun = time.monotonic()
        while not self._cluster.is_whole():
            if time.monotonic() > begun + MEND_S:
                self.mends = False
                return
            time.sleep(0.25)
        self.mend_s.append(time.monotonic() - begun)

    def _kill_replica(self, deployment: str) -> None:
        replicas = self._cluster.replicas(deployment)
        if replicas:
            _kill(self._random.choice(replicas))

    def _kill_controller(self) -> None:
        _kill(self._cluster.controller())

    def _lose_node(self) -> None:
        self._cluster.lose_node(self._random.choice(self._cluster.worker_nodes()))
        time.sleep(self._random.uniform(0, NODE_AWAY_S))
        self._cluster.add_node()


def _kill(actor: Any) -> None:
    """At once, as the system kills what uses too much memory. One that is starting has no process
    to ask for yet, or is already gone: then it is left."""
    try:
        pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=5)
    except (ray.exceptions.RayError, TimeoutError) as error:
        logger.info("nobody to kill: %s", str(error).split("\n", 1)[0])
        return
    os.kill(pid, signal.SIGKILL)
