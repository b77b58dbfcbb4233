"""An endpoint over an H100 and an L4 that are not there: python -m tests.deploy.emulated.two_types

Real engines, drafter, router and HTTP on this machine; only the time that a device takes is made up
(see `tests.deploy.emulated.devices`). Prints what it saw as JSON: the trees of each pool at light
and at full load, where requests went and why, and the throughput against routing by turns, on the
clock and in time of the devices.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
os.environ.setdefault("SMART_SERVE_COSTS", str(Path(".pytest_cache", "costs").absolute()))

from smart_serve.bench.figures import Load
from smart_serve.bench.over_http import HttpBench
from smart_serve.bench.simulator.simulation import Setting, Simulation
from smart_serve.bench.workload import picture_questions
from tests.deploy.emulated.devices import machine
from tests.deploy.emulated.gpu_cluster import PLACES, POOLS, EmulatedCluster, emulated_cluster
from tests.deploy.scrape import scrape
from tests.deploy.served_app import wait_for

FIXED = "chain:4"
LIGHT, FULL = 1, PLACES
"""Clients of one pool."""
CROWD = 8 * PLACES
"""Clients of both: as many as the faster one is worth leaving for the slower one."""
WARM_UP = 8
"""Requests."""
CONTEXT = 128.0
"""Of a prompt with a picture and half its answer, for the bundled model."""
SETTLE_S = 60.0
TOLD = re.compile(r"done in about (\d+) ms; in \w+ (\d+) ms")


class Rounds:
    """Questions over HTTP, and what the metrics say that they caused."""

    def __init__(self, cluster: EmulatedCluster) -> None:
        self._cluster = cluster
        questions = picture_questions(CROWD, seed=3)
        self._ours = HttpBench(cluster.url, questions)
        self._turns = HttpBench(cluster.turns_url, questions)
        self._ended = 0.0

    def by_turns(self, pools: tuple[str, ...], policy: str, load: Load) -> dict[str, Any]:
        self._cluster.take_turns(pools)
        return self._run(self._turns, policy, load)

    def routed(self, load: Load) -> dict[str, Any]:
        return self._run(self._ours, "smart", load)

    def _run(self, bench: HttpBench, policy: str, load: Load) -> dict[str, Any]:
        before, device = self._counts(), self._cluster.device_ms()
        sample = bench.run(policy, load, 0)
        self._ended += load.requests
        # The counts of the last requests come a little later.
        wait_for(lambda: scrape().sum("sequences_total") >= self._ended, SETTLE_S)
        busy = {
            name: sum(later[part] - device[name][part] for part in later)
            for name, later in self._cluster.device_ms().items()
        }
        return {
            "tokens": sample.tokens,
            "tokens_per_s": sample.tokens / sample.elapsed_s,
            "tokens_per_device_s": 1e3 * sample.tokens / max(busy.values()),
            "busy_device_s": {name: ms / 1e3 for name, ms in busy.items()},
            "sequences": self._gained(before, "sequences"),
            "nodes_per_sequence": self._trees(before),
        }

    def _counts(self) -> dict[str, Counter[str]]:
        """By pool."""
        seen = scrape()
        return {
            pool: Counter(
                sequences=seen.sum("sequences_total", pool=pool),
                tokens=seen.sum("tokens_total", pool=pool),
                nodes=seen.sum("draft_tokens_total", pool=pool),
                accepted=seen.sum("draft_tokens_total", pool=pool, outcome="accepted"),
            )
            for pool in POOLS
        }

    def _gained(self, before: dict[str, Counter[str]], name: str) -> dict[str, float]:
        now = self._counts()
        return {pool: now[pool][name] - before[pool][name] for pool in POOLS}

    def _trees(self, before: dict[str, Counter[str]]) -> dict[str, float]:
        """Draft nodes of one sequence in one step, by pool: a step gives each sequence what was
        accepted and one token more."""
        tokens, nodes, accepted = (
            self._gained(before, name) for name in ("tokens", "nodes", "accepted")
        )
        return {
            pool: nodes[pool] / (tokens[pool] - accepted[pool])
            for pool in POOLS
            if tokens[pool] > accepted[pool]
        }


def observe(cluster: EmulatedCluster) -> dict[str, Any]:
    rounds, trees = Rounds(cluster), {}
    cells = [("smart", pool, clients) for pool in POOLS for clients in (FULL, LIGHT)]
    # The control: trees that nothing sizes.
    for policy, pool, clients in (*cells, (FIXED, "h100", FULL), (FIXED, "l4", LIGHT)):
        tell(f"{pool}, {policy}, {clients} clients")
        # The drafter must be known before its trees say anything.
        rounds.by_turns((pool,), policy, load(clients, WARM_UP))
        seen = rounds.by_turns((pool,), policy, load(clients, max(WARM_UP, 3 * clients)))
        trees[f"{policy} {pool} {clients}"] = seen["nodes_per_sequence"][pool]
    tell("few clients, routed")
    few = rounds.routed(load(LIGHT, 6))
    tell("many clients, by turns")
    by_turns = rounds.by_turns(tuple(POOLS), "smart", load(CROWD, CROWD))
    tell("many clients, routed")
    many = rounds.routed(load(CROWD, CROWD))
    return {
        "trees": trees,
        "predicted_trees": {
            f"smart {pool} {clients}": predicted_nodes(kind, clients)
            for pool, kind in POOLS.items()
            for clients in (LIGHT, FULL)
        },
        "few": few,
        "by_turns": by_turns,
        "routed": many,
        "decisions": list(decisions(cluster.logs)),
    }


def predicted_nodes(accelerator: str, batch: int) -> float:
    """What the simulator says of this type at this load, with a drafter of its own making."""
    setting = Setting(machine=machine(accelerator), context=CONTEXT)
    simulation = Simulation("smart", setting, batch)
    steps = [simulation.step() for _ in range(200)][100:]
    return sum(step.nodes for step in steps) / len(steps) / batch


def load(clients: int, requests: int) -> Load:
    return Load(batch=clients, temperature=0.0, requests=requests)


def decisions(logs: Path) -> Iterator[dict[str, Any]]:
    """What the router's log says of assignments when it could choose between two pools."""
    for file in logs.rglob("logs/serve/replica_smart-serve_router_*.log"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            told = TOLD.search(entry.get("reason") or "")
            if entry.get("decision") == "assign" and told is not None:
                here, there = map(float, told.groups())
                yield {"pool": entry["pool"], "here_ms": here, "there_ms": there}


def tell(what: str) -> None:
    print(f"{time.strftime('%X')} {what}", file=sys.stderr, flush=True)


def main() -> None:
    with emulated_cluster() as cluster:
        seen = observe(cluster)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
