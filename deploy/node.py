"""What a replica knows of the node it runs on."""

from __future__ import annotations

import os

import ray


def node_id() -> str:
    value: str = ray.get_runtime_context().get_node_id()
    return value


def node_ip() -> str:
    value: str = ray.util.get_node_ip_address()
    return value


def accelerator_type() -> str:
    """As the node is labelled; "cpu" where there is no label."""
    labels: dict[str, str] = ray.get_runtime_context().get_node_labels()
    return labels.get("ray.io/accelerator-type") or "cpu"


def use_threads(wanted: int | None) -> None:
    """Sets torch's threads in this process. None: all cores but one, which others need.

    Without this Ray leaves one thread to any replica that asks for less than two CPUs.
    """
    import torch  # here, because builders of the application import this module too

    torch.set_num_threads(wanted or max(1, (os.cpu_count() or 2) - 1))
