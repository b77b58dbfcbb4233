"""Two nodes on this machine, a pool on each, one drafter between them; prints what it saw as JSON.

A process of its own, because a process has one Ray.
"""

from __future__ import annotations

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")

import httpx
import ray
from ray import serve
from ray.cluster_utils import Cluster
from served_app import APP, ServedApp, as_shipped, free_port, wait_for

from deploy.app import build
from deploy.args import AppArgs, PoolArgs

ARGS = AppArgs(
    device="cpu",
    engine={"max_running": 4, "kv_tokens": 4096},
    # On different nodes, so that wherever the drafter is, one of them reaches it by TCP.
    pools=(
        PoolArgs(name="h100", accelerator_type="H100", num_gpus=1),
        PoolArgs(name="l4", accelerator_type="L4", num_gpus=1),
    ),
)


def node(accelerator: str) -> dict[str, Any]:
    return {
        "num_cpus": 2,
        "num_gpus": 1,
        "resources": {f"accelerator_type:{accelerator}": 1},
        "labels": {"ray.io/accelerator-type": accelerator},
        "object_store_memory": 150 * 2**20,
    }


def observe(app: ServedApp) -> dict[str, Any]:
    for pool in ARGS.pools:
        wait_for(lambda name=pool.name: app.call(f"target-{name}", "describe")["wire_ms"], 60)
    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(lambda _: app.ask(max_tokens=40), range(48)))
    return {
        "statuses": sorted({answer.status_code for answer in answers}),
        "texts": sorted({answer.json()["choices"][0]["message"]["content"] for answer in answers}),
        "targets": [app.call(f"target-{pool.name}", "describe") for pool in ARGS.pools],
        "drafter": app.call("drafter", "describe"),
        "status": httpx.get(f"{app.url}/status").json(),
        "blocks": [app.call(f"target-{pool.name}", "blocks") for pool in ARGS.pools],
    }


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        os.environ.update(TMPDIR=folder, **as_shipped(Path(folder)))
        Path(folder, "ray").mkdir()
        head = {**node("H100"), "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(**node("L4"))
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            port = free_port()
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            handle = serve.run(build(ARGS), name=APP)
            print(json.dumps(observe(ServedApp(f"http://127.0.0.1:{port}", handle))))
        finally:
            ray.shutdown()
            cluster.shutdown()


if __name__ == "__main__":
    main()
