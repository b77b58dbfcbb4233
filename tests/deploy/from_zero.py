"""Two pools that are empty at first, on nodes that Ray's autoscaler adds and takes away; prints
what it saw as JSON.

The nodes are Ray's fake ones: raylets on this machine, each with the label and the resources of its
type of GPU. `ray.cluster_utils.AutoscalingCluster` needs a file that the wheel lacks, and stops
every Ray of the machine; this starts a head of its own, and stops that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    # Of the nodes too, which inherit them from the head.
    RAY_FAKE_CLUSTER="1",
    AUTOSCALER_UPDATE_INTERVAL_S="1",
    PYTHONPATH=str(Path(__file__).parents[2]),
)

import httpx
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from served_app import APP, ServedApp, as_shipped, free_port, wait_for

GPUS = ("H100", "L4")
STORE_BYTES = 150 * 2**20
LABEL = "ray.io/accelerator-type"
NODE_S = 240.0
"""Until a node and the replica on it are up; two cores start all of it, beside the clients."""
IDLE_MINUTES = 0.1
KEEP_S = 10.0
CALM_S = 15.0
"""For which one client is watched: a second pool would have been asked for by then."""
START_S = 120.0
PLACES = 4
MANY = 3 * PLACES
FRESH_MS = 5_000
"""Reports come every second, and on busy cores later."""
EMPTY_LISTS = (
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def pool(accelerator: str) -> dict[str, Any]:
    return {
        "name": accelerator.lower(),
        "accelerator_type": accelerator,
        "num_gpus": 1,
        "min_replicas": 0,
        "max_replicas": 1,
        "num_threads": 1,
    }


def serve_config(port: int) -> ServeDeploySchema:
    """As an operator would write it: the policy of a whole application is there only in a file."""
    told_every_s = {
        f"RAY_SERVE_{part}_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1"
        for part in ("REPLICA", "HANDLE")
    }
    application = {
        "name": APP,
        "route_prefix": "/",
        "import_path": "deploy.app:build",
        "runtime_env": {"env_vars": told_every_s},
        "autoscaling_policy": {
            "policy_function": "deploy.autoscaling:AppAutoscaling",
            "policy_kwargs": {"keep_s": KEEP_S},
        },
        "args": {
            "device": "cpu",
            "engine": {"max_running": PLACES, "kv_tokens": 4096},
            "pools": [pool(one) for one in GPUS],
        },
    }
    http = {"host": "127.0.0.1", "port": port}
    return ServeDeploySchema(
        proxy_location="HeadOnly", http_options=http, applications=[application]
    )


def autoscaling_config(gcs_address: str) -> dict[str, Any]:
    """Of Ray's autoscaler: a type of node for each type of GPU, none of them there at first."""

    def node_type(accelerator: str) -> dict[str, Any]:
        gpu = {"GPU": 1, f"accelerator_type:{accelerator}": 1}
        return {
            "resources": {"CPU": 2, "object_store_memory": STORE_BYTES, **gpu},
            "labels": {LABEL: accelerator},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 1,
        }

    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    head = {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "from-zero",
        "max_workers": len(GPUS),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": {
            "type": "external",
            "module": provider,
            "gcs_address": gcs_address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        # Ray takes the file as it is, and asks for all of these.
        **{key: {} for key in ("auth", "file_mounts", "docker")},
        **{key: [] for key in EMPTY_LISTS},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": head,
            **{one.lower(): node_type(one) for one in GPUS},
        },
    }


@contextmanager
def autoscaled_head(folder: Path) -> Iterator[str]:
    """The address of a head with its autoscaler; in the end all that was started here is gone."""
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(autoscaling_config(address)))
    options = {
        "port": port,
        "temp-dir": folder / "ray",
        "autoscaling-config": file,
        "num-cpus": 2,
        "object-store-memory": STORE_BYTES,
        "include-dashboard": "false",
        # Others on this machine may have the usual ones.
        "ray-client-server-port": free_port(),
        "dashboard-agent-listen-port": 0,
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    ray_command = str(Path(sys.executable).with_name("ray"))
    words = [f"--{name}={value}" for name, value in options.items()]
    with open(folder / "head.log", "w") as log:
        head = subprocess.Popen(
            [ray_command, "start", "--head", "--block", *words], stdout=log, stderr=log
        )
    try:
        wait_for(lambda: has_started(folder / "head.log", head), START_S)
        yield address
    finally:
        # Ray brings its own copy, which can be imported once Ray has been.
        import psutil

        started = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        for process in psutil.wait_procs([*started, psutil.Process(head.pid)], timeout=30)[1]:
            with suppress(psutil.NoSuchProcess):  # it may have ended since
                process.kill()
        head.wait()


def has_started(log: Path, head: subprocess.Popen[bytes]) -> bool:
    told = log.read_text()
    assert head.poll() is None, told[-2000:]
    return "Ray runtime started" in told


class Clients:
    """Ask one thing after another until they are told to stop."""

    def __init__(self, app: ServedApp, count: int) -> None:
        self._app = app
        self._stopping = threading.Event()
        self.statuses: list[int] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for one in self._threads:
            one.start()

    def _ask(self) -> None:
        while not self._stopping.is_set():
            body = self._app.body(text="Describe the picture.", max_tokens=64, ignore_eos=True)
            url = f"{self._app.url}/v1/chat/completions"
            # The first ones wait until there is a node.
            answer = httpx.post(url, json=body, timeout=NODE_S)
            self.statuses.append(answer.status_code)

    def stop(self) -> None:
        self._stopping.set()
        for one in self._threads:
            one.join()


def gpu_nodes() -> list[str]:
    """Types of the GPUs that are there."""
    labels = (node["Labels"] for node in ray.nodes() if node["Alive"])
    return sorted(one[LABEL] for one in labels if LABEL in one)


def is_serving(app: ServedApp, *kinds: str) -> bool:
    """Whether replicas on these types, and no others, have reported."""
    view = app.call("router", "cluster")
    return {one.report.device_type for one in view.replicas if one.age_ms < FRESH_MS} == set(kinds)


def observe(app: ServedApp) -> dict[str, Any]:
    seen: dict[str, Any] = {"at_first": gpu_nodes(), "seconds": {}}
    begun_s = time.monotonic()

    def note(what: str) -> None:
        seen["seconds"][what] = round(time.monotonic() - begun_s, 1)
        print(what, seen["seconds"][what], gpu_nodes(), file=sys.stderr, flush=True)

    one = Clients(app, 1)
    wait_for(lambda: is_serving(app, "H100"), NODE_S)
    note("one client is served")
    time.sleep(CALM_S)
    seen["with_one_client"] = gpu_nodes()
    one.stop()
    many = Clients(app, MANY)
    wait_for(lambda: is_serving(app, *GPUS), NODE_S)
    note("many clients are served by two pools")
    seen["with_many_clients"] = gpu_nodes()
    many.stop()
    seen["answers"] = len(one.statuses) + len(many.statuses)
    seen["statuses"] = sorted({*one.statuses, *many.statuses})
    wait_for(lambda: gpu_nodes() == [], NODE_S)
    note("the nodes are gone")
    seen["afterwards"] = gpu_nodes()
    return seen


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        os.environ.update(TMPDIR=name, **as_shipped(folder))
        with autoscaled_head(folder) as address:
            ray.init(address=address, log_to_driver=False)
            try:
                port = free_port()
                config = serve_config(port)
                serve.start(
                    proxy_location="HeadOnly", http_options=config.http_options.model_dump()
                )
                _get_global_client().deploy_apps(config)
                app = ServedApp(f"http://127.0.0.1:{port}", None)
                wait_for(lambda: serve.status().applications[APP].status == "RUNNING", NODE_S)
                seen = observe(app)
            finally:
                # HAProxy ends with Serve. Where Ray alone is ended, one that is just being replaced
                # outlives it.
                serve.shutdown()
                ray.shutdown()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
