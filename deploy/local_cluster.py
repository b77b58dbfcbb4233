"""A Ray cluster inside this process: it ends with it, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy import proxy

MIN_CPUS = 2
"""The deployments ask for 1.3 CPUs between them; a machine with one core runs them too."""
OBJECT_STORE_BYTES = 200 * 2**20
STOP_S = 15.0


@contextmanager
def local_cluster(port: int) -> Iterator[Path]:
    """Ray and Serve on this machine, HTTP on 127.0.0.1:`port` only. Yields the folder of the logs.

    At the end, however it comes, every process that was started is gone, and so is the folder,
    unless the end is an error: then it stays, for its logs.
    """
    # A short path of its own: Ray's Unix sockets have little room for it.
    folder = Path(tempfile.mkdtemp(prefix="smart-serve-"))
    assert "ray" not in sys.modules, "the environment is prepared before Ray is imported"
    _prepare_environment(folder)
    # Not before: Ray reads the environment when it is imported.
    import ray
    from ray import serve

    try:
        ray.init(
            address="local",
            num_cpus=max(MIN_CPUS, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.1",
        )
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield folder
    except Exception:
        _stop()
        raise
    except BaseException:
        # Ctrl-C and the like: a good end.
        _stop()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        _stop()
        shutil.rmtree(folder, ignore_errors=True)


def _prepare_environment(folder: Path) -> None:
    os.environ.update(
        # Sockets of the drafters too: they go when the folder goes.
        TMPDIR=str(folder),
        RAY_USAGE_STATS_ENABLED="0",
        # Some ports of Ray's own listen on every interface. Its token mode keeps strangers out;
        # with a token for this run alone, nothing is written to the home folder.
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        # The bundled model is complete: nothing is looked up.
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        # Serve's own HTTP proxy, unless told otherwise: HAProxy has ports that listen on every
        # interface.
        **proxy.MIDDLEWARES,
        **proxy.beside_others(folder),
    )
    os.environ.pop("RAY_ADDRESS", None)


def _stop() -> None:
    """Ends Ray, then by id whatever it left of the processes that it had started here."""
    # Ray brings its own copy, which can be imported once Ray has been.
    import psutil  # type: ignore[import-untyped]
    import ray

    children: list[Any] = psutil.Process().children(recursive=True)
    ray.shutdown()
    deadline = time.monotonic() + STOP_S
    _, alive = psutil.wait_procs(children, timeout=deadline - time.monotonic())
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
