"""What the costs measured on this machine depend on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

import kernels
import smart_serve
from smart_serve.machine import processor_name
from smart_serve.speculation.cost_store import Fingerprint

_CODE = ("models", "paging", "drafters")
"""Packages that a forward pass runs through, besides the kernels."""


def fingerprint(
    part: Literal["target", "drafter"],
    shape: Mapping[str, object],
    dtype: torch.dtype,
    device: torch.device,
    grid: object,
    stairs: tuple[int, ...] = (),
) -> Fingerprint:
    """Of the passes of `part`, a model of this `shape`, measured on `grid`, padded to `stairs`."""
    return Fingerprint(
        part=part,
        model=_digest(json.dumps(shape, sort_keys=True).encode()),
        dtype=str(dtype).removeprefix("torch."),
        device=device_name(device),
        threads=0 if device.type == "cuda" else torch.get_num_threads(),
        stairs=stairs,
        grid=_digest(repr(grid).encode()),
        torch=str(torch.__version__),
        engine=_code_digest(),
    )


def device_name(device: torch.device) -> str:
    """The accelerator's or the processor's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


@functools.cache
def _code_digest() -> str:
    """A new kernel has new costs, whatever version it comes in."""
    root = Path(smart_serve.__path__[0])
    folders = [Path(kernels.__path__[0]), *(root / name for name in _CODE)]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return _digest(b"".join(path.read_bytes() for path in files))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
