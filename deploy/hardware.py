"""The nodes that an application could be placed on: of a cluster, of this machine, or of a file."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import ray
from ray.util.accelerators import accelerators

from deploy.node_choice import ACCELERATOR_LABEL
from deploy.placement import Node
from smart_serve.errors import ConfigError, ServerError
from smart_serve.machine import usable_cores

CONNECT_S = 3.0


def cluster_nodes(address: str) -> list[Node]:
    """The living nodes of the Ray cluster at `address`, with all they have, be it in use or not.
    Raises `ServerError` where no cluster answers."""
    try:
        host, _, port = address.rpartition(":")
        if port.isdecimal():
            # Ray itself would try for minutes.
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        message = "no Ray cluster answers; name one with --address, or use --local or --nodes"
        raise ServerError(message) from error
    try:
        return [
            Node(
                name=node["NodeName"],
                cpus=node["Resources"].get("CPU", 0.0),
                gpus=int(node["Resources"].get("GPU", 0)),
                accelerator_type=node["Labels"].get(ACCELERATOR_LABEL),
                labels=node["Labels"],
            )
            for node in ray.nodes()
            if node["Alive"]
        ]
    finally:
        ray.shutdown()


def local_nodes() -> list[Node]:
    """This machine, as a cluster of one."""
    import torch

    gpus = torch.cuda.device_count()
    kind = accelerator_of(torch.cuda.get_device_name(0)) if gpus else None
    return [Node(name="this machine", cpus=usable_cores(), gpus=gpus, accelerator_type=kind)]


def file_nodes(path: Path) -> list[Node]:
    """A JSON list of nodes that are, or are to be. Raises `ConfigError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Node])
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is not a list of nodes: {error}") from error


def accelerator_of(device_name: str) -> str | None:
    """Ray's name of a device that calls itself, for instance, "NVIDIA H100 80GB HBM3"."""
    words = device_name.replace("RTX PRO 6000", "RTX-PRO-6000").replace("-", " ").split()
    known = [name for name in vars(accelerators).values() if isinstance(name, str)]
    fitting = [name for name in known if set(name.replace("-", " ").split()) <= set(words)]
    return max(fitting, key=len, default=None)
