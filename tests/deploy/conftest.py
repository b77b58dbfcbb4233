"""One application on Ray for all tests marked `serve`, in a folder and on a port of its own."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from local_app import LocalSource, local_app, served
from served_app import APP, ServedApp, as_shipped, free_port, wait_for

with warnings.catch_warnings():
    # Ray's declarations are older than the pydantic they meet.
    warnings.simplefilter("ignore")
    import ray
    from ray import serve


@pytest.fixture(scope="session")
def source() -> Iterator[LocalSource]:
    """An engine in this process, for tests of what stands before it."""
    one = LocalSource()
    yield one
    one.loop.stop()


@pytest.fixture(scope="session")
def app() -> Iterator[ServedApp]:
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    from deploy.app import build
    from deploy.args import AppArgs

    # Short, because the paths of Ray's Unix sockets have little room.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        # TMPDIR of the replicas: what a killed one leaves goes too.
        os.environ.update(TMPDIR=folder, **as_shipped(Path(folder)))
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            log_to_driver=False,
            _temp_dir=folder,
            _system_config={"metrics_report_interval_ms": 500},
        )
        try:
            port = free_port()
            serve.start(
                http_options={"host": "127.0.0.1", "port": port},
                # Nothing is traced unless a client asks for it.
                tracing_config={"enabled": True, "sampling_ratio": 0.0},
            )
            args = AppArgs(drafter_network="local", limits={"max_body_bytes": 2_000_000})
            handle = serve.run(build(args), name=APP)
            served = ServedApp(f"http://127.0.0.1:{port}", handle, Path(folder))
            wait_for(lambda: httpx.get(f"{served.url}/health").status_code == 200)
            yield served
            serve.shutdown()
        finally:
            ray.shutdown()


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.serve)])
def base(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the API answers: behind uvicorn alone, and behind Ray's proxy. Idle at the end."""
    if request.param == "ray":
        app: ServedApp = request.getfixturevalue("app")
        yield app.url
        app.wait_until_idle()
        return
    source: LocalSource = request.getfixturevalue("source")
    with served(local_app(source)) as url:
        yield url
        wait_for(source.is_idle)
