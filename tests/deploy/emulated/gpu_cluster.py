"""The application on nodes of three types of GPU, and a second way in that routes by turns."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

from deploy import app, dispatch
from deploy.args import AppArgs, PoolArgs
from deploy.ingress import IngressReplica
from smart_serve.messages import Assignment, RequestShape
from smart_serve.routing.cluster_view import ClusterView
from tests.deploy.emulated.devices import EmulatedDrafter, EmulatedTarget
from tests.deploy.served_app import as_shipped, free_port

PLACES = 8
"""Of each batch: small, so that few clients fill a pool."""
POOLS = {"h100": "H100", "l4": "L4"}
ARGS = AppArgs(
    device="cpu",
    engine={"max_running": PLACES, "kv_tokens": 16384},
    pools=tuple(
        PoolArgs(name=name, accelerator_type=kind, num_gpus=1, num_threads=1)
        for name, kind in POOLS.items()
    ),
    drafter_nodes={"accelerator_type": "L40S"},
    drafter_gpus=0.5,
    log_format="json",
)


class Turns:
    """In place of the router: each request to the next pool of a list, whatever the load."""

    def __init__(self, router: Any) -> None:
        self._router = router
        self._turns: Iterator[str] = itertools.cycle(POOLS)

    async def take(self, pools: Sequence[str]) -> None:
        """From now on these."""
        self._turns = itertools.cycle(pools)

    async def assign(self, shape: RequestShape) -> Assignment:
        return Assignment(pool=next(self._turns), reason="its turn")

    async def cluster(self) -> ClusterView:
        view: ClusterView = await self._router.cluster.remote()
        return view


class PatientIngress(IngressReplica):
    """Waits for its turn, however busy the machine is, and never decides by itself."""

    async def __init__(self, *args: Any) -> None:
        dispatch.ROUTER_S = 60.0
        await super().__init__(*args)


@dataclass(frozen=True)
class EmulatedCluster:
    """The running application."""

    url: str
    turns_url: str
    """The same targets, by turns."""
    logs: Path

    def handle(self, deployment: str, application: str = app.APP_NAME) -> Any:
        return serve.get_deployment_handle(deployment, application)

    def device_ms(self) -> dict[str, dict[str, float]]:
        """By pool: time of its device, and of the drafter's for it, so far."""
        return {
            name: self.handle(f"target-{name}").device_ms.remote().result(timeout_s=30)
            for name in POOLS
        }

    def take_turns(self, pools: Sequence[str]) -> None:
        self.handle("turns", "turns").take.remote(pools).result(timeout_s=30)


@contextmanager
def emulated_cluster() -> Iterator[EmulatedCluster]:
    """Starts everything in a folder and on a port of its own, and stops exactly that."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        os.environ.update(
            TMPDIR=folder,
            PYTHONPATH=str(Path(__file__).parents[3]),
            **as_shipped(Path(folder)),
        )
        Path(folder, "ray").mkdir()
        head = {**_node("L40S"), "include_dashboard": False}
        # Metrics are read soon after they are exported.
        head["_system_config"] = {"metrics_report_interval_ms": 500}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for kind in POOLS.values():
            cluster.add_node(**_node(kind))
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            port = free_port()
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            _deploy()
            url = f"http://127.0.0.1:{port}"
            yield EmulatedCluster(url, f"{url}/turns", Path(folder))
        finally:
            ray.shutdown()
            cluster.shutdown()


def _deploy() -> None:
    app.TargetReplica, app.DrafterReplica = EmulatedTarget, EmulatedDrafter
    serve.run(app.build(ARGS), name=app.APP_NAME)

    def handle(name: str) -> Any:
        return serve.get_deployment_handle(name, app.APP_NAME)

    turns = serve.deployment(Turns, name="turns", ray_actor_options={"num_cpus": 0.1})
    ingress = serve.deployment(
        serve.ingress()(PatientIngress),
        name="ingress",
        ray_actor_options={"num_cpus": 0.2},
        max_ongoing_requests=1000,
    )
    targets = {name: handle(f"target-{name}") for name in POOLS}
    router = turns.bind(handle("router"))
    way_in = ingress.bind(ARGS, targets, router, ())
    serve.run(way_in, name="turns", route_prefix="/turns")


def _node(accelerator: str) -> dict[str, Any]:
    return {
        "num_cpus": 2,
        "num_gpus": 1,
        "resources": {f"accelerator_type:{accelerator}": 1},
        "labels": {"ray.io/accelerator-type": accelerator},
        "object_store_memory": 150 * 2**20,
    }
