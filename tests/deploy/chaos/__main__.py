"""Streams while parts of the cluster are killed: `python -m tests.deploy.chaos --minutes 15`.

Prints a report as JSON, and fails if a single character was lost, doubled or wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
os.environ.setdefault("SMART_SERVE_COSTS", str(Path(".pytest_cache", "costs").absolute()))

from deploy.args import AppArgs, PoolArgs
from tests.deploy.chaos.clients import Clients
from tests.deploy.chaos.cluster import chaos_cluster
from tests.deploy.chaos.faults import KILLS, KINDS, Faults
from tests.deploy.chaos.report import is_good, report


def app_args(resumptions: int | None) -> AppArgs:
    """`resumptions`: of a request whose replica is lost; None: as served."""
    limits = {} if resumptions is None else {"max_resumptions": resumptions}
    return AppArgs(
        engine={"max_running": 16, "kv_tokens": 8192},
        pools=(PoolArgs(num_replicas=2, num_threads=1),),
        ingress_replicas=2,
        # So short that an update cuts streams at the targets: they go on at others.
        drain_s=2,
        limits=limits,
    )


def chaos(options: argparse.Namespace) -> dict[str, Any]:
    with chaos_cluster(app_args(options.resumptions), options.logs) as cluster:
        clients = Clients(cluster.url, options.seed, options.clients)
        expected = clients.each_once()
        assert all(one.is_done and one.fault is None for one in expected), expected
        faults = Faults(cluster, options.seed, tuple(options.kinds))
        ended = threading.Event()
        heard: list[Any] = []
        asking = threading.Thread(target=lambda: heard.extend(clients.until(ended.is_set)))
        begun = time.monotonic()
        asking.start()
        try:
            faults.run(begun + 60 * options.minutes)
        finally:
            ended.set()
            asking.join()
        return {
            "seed": options.seed,
            "minutes": round((time.monotonic() - begun) / 60, 1),
            **report(heard, expected, faults.done),
            "mends": faults.mends,
            "mended_within_s": round(max(faults.mend_s, default=0.0), 1),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KILLS)
    parser.add_argument("--resumptions", type=int, help="0 is the control: it must fail")
    parser.add_argument("--report", type=Path, help="where the report is written, too")
    parser.add_argument("--logs", type=Path, help="a folder for the logs of the replicas")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    result = chaos(options)
    text = json.dumps(result, indent=2)
    if options.report is not None:
        options.report.write_text(text)
    print(text)
    return 0 if is_good(result) else 1


if __name__ == "__main__":
    sys.exit(main())
