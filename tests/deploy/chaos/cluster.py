"""A small cluster on this machine: a head that stays, and nodes that may be lost."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.cluster_utils import Cluster

from deploy.app import APP_NAME, build
from deploy.args import AppArgs
from tests.deploy.served_app import as_shipped, free_port, wait_for

NODES = 2
READY_S = 120.0


class ChaosCluster:
    """The application on it, and the processes that it is made of."""

    def __init__(self, cluster: Cluster, args: AppArgs, url: str) -> None:
        self._cluster = cluster
        self._args = args
        self.url = url
        self._whole = {
            "ingress": args.ingress_replicas,
            "router": 1,
            "vision-encoder": args.vision_replicas,
            "drafter": args.drafter_replicas,
            **{f"target-{pool.name}": pool.num_replicas for pool in args.pools},
        }

    def replicas(self, deployment: str) -> list[Any]:
        """The actors of a deployment that Ray knows, the same order each time."""
        named = ray.util.list_named_actors(all_namespaces=True)
        prefix = f"SERVE_REPLICA::{APP_NAME}#{deployment}#"
        names = sorted(one["name"] for one in named if one["name"].startswith(prefix))
        return [ray.get_actor(name, namespace="serve") for name in names]

    def controller(self) -> Any:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")

    def worker_nodes(self) -> list[Any]:
        return [node for node in self._cluster.list_all_nodes() if node != self._cluster.head_node]

    def lose_node(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def add_node(self) -> None:
        self._cluster.add_node(**_node())

    def update(self) -> None:
        """Replaces every replica, by turns with old ones first and with new ones first."""
        self._args = self._args.model_copy(
            update={
                "surge_percent": 100 - self._args.surge_percent,
                "policy": "eagle2" if self._args.policy == "smart" else "smart",
            }
        )
        serve.run(build(self._args), name=APP_NAME)

    def is_whole(self) -> bool:
        """Every deployment has all its replicas, which answer, and the targets have reported."""
        try:
            states = serve.status().applications[APP_NAME].deployments
            running = {name: one.replica_states.get("RUNNING", 0) for name, one in states.items()}
            # What Serve says may be older than a death.
            actors = [actor for name in self._whole for actor in self.replicas(name)]
            ray.get([actor.__ray_call__.remote(lambda _: None) for actor in actors], timeout=5)
            health = httpx.get(f"{self.url}/health", timeout=5)
        except (KeyError, ValueError, ray.exceptions.RayError, httpx.HTTPError):
            return False
        is_counted = len(actors) == sum(self._whole.values())
        return is_counted and running == self._whole and health.status_code == 200


@contextmanager
def chaos_cluster(args: AppArgs, logs: Path | None = None) -> Iterator[ChaosCluster]:
    """Starts everything in a folder and on a port of its own, and stops exactly that; `logs`: where
    those of the replicas are kept."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        os.environ.update(TMPDIR=folder, **as_shipped(Path(folder), drain_s=30))
        Path(folder, "ray").mkdir()
        head = {**_node(), "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(NODES):
            cluster.add_node(**_node())
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            port = free_port()
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            serve.run(build(args), name=APP_NAME)
            one = ChaosCluster(cluster, args, f"http://127.0.0.1:{port}")
            wait_for(one.is_whole, READY_S)
            yield one
        finally:
            ray.shutdown()
            cluster.shutdown()
            if logs is not None:
                for found in Path(folder).rglob("logs/serve"):
                    shutil.copytree(found, logs, dirs_exist_ok=True)


def _node() -> dict[str, Any]:
    return {"num_cpus": 2, "object_store_memory": 150 * 2**20}
