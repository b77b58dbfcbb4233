"""What the processes of a server use of the processors."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any


def cpu_seconds(process: int) -> dict[str, float]:
    """Processor seconds so far of `process` and all that it started, by what they do; those of the
    calling process are "clients"."""
    psutil = _psutil()
    used: dict[str, float] = defaultdict(float)
    root = psutil.Process(process)
    for one in (root, *root.children(recursive=True)):
        try:
            times, words = one.cpu_times(), one.cmdline()
        except psutil.NoSuchProcess:
            continue
        used[_what(words)] += times.user + times.system
    own = os.times()
    used["clients"] = own.user + own.system
    return dict(used)


def stolen_seconds() -> float:
    """Processor seconds so far that other machines on the host had instead of this one; 0 where the
    system does not tell."""
    return float(getattr(_psutil().cpu_times(), "steal", 0.0))


def _psutil() -> Any:
    # Ray brings its own copy, which can be imported once Ray has been.
    import ray  # noqa: F401

    # isort: split
    import psutil  # type: ignore[import-untyped]

    return psutil


def _what(words: list[str]) -> str:
    """Replicas and Serve's own actors by name, the rest is "ray"."""
    title = words[0] if words else ""
    if title.startswith("ray::ServeReplica:"):
        return title.split(":")[-1].split(".")[0]
    if title.startswith("ray::ProxyActor"):
        return "proxy"
    return "haproxy" if "haproxy" in title else "ray"
