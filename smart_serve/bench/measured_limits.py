"""The limits of a target and of its drafter on the device that they run on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from smart_serve.bench.roof import Limit, Roof
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.drafters.protocol import Drafter
from smart_serve.models.target import TargetModel

COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Of the buffer that is copied: several times what the caches of such devices hold."""
MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices that are multiplied: enough to occupy such a device."""
REPEATS = 8
"""The best of them counts: what disturbs a measurement only ever adds to it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the two cannot take less than here."""

    roof: Roof
    target: Limit
    drafter: Limit | None
    """None: there is none, or it is no network."""

    @staticmethod
    def measured(model: TargetModel, drafter: Drafter | None) -> Limits:
        roof, element_bytes = measured_roof(model.device, model.dtype), model.dtype.itemsize
        kv = model.kv_shape
        kv_elements = 2 * kv.num_layers * kv.num_kv_heads * kv.head_dim
        sizes = model.body_weights, model.head_weights
        target = Limit(roof, *sizes, element_bytes, kv_elements)
        if not isinstance(drafter, NetworkDrafter):
            return Limits(roof, target, None)
        # What it reads of its cache, a layer's part, is left out.
        sizes = drafter.body_weights, drafter.head_weights
        return Limits(roof, target, Limit(roof, *sizes, element_bytes))


def measured_roof(device: torch.device, dtype: torch.dtype) -> Roof:
    """Takes about a second, and on CUDA 2 GiB for as long."""
    return Roof(_copy_gb_s(device), _matrix_tflops(device, dtype))


def _copy_gb_s(device: torch.device) -> float:
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    return 2 * source.numel() / least_s(device, lambda: copy.copy_(source)) * 1e-9


def _matrix_tflops(device: torch.device, dtype: torch.dtype) -> float:
    size = MATRIX_SIZE[device.type]
    # Random: a device that draws less power, as for ones and zeros, multiplies faster.
    generator = torch.Generator(device).manual_seed(0)
    factor = torch.randn(size, size, generator=generator, dtype=dtype, device=device)
    product = torch.empty_like(factor)
    return 2 * size**3 / least_s(device, lambda: torch.mm(factor, factor, out=product)) * 1e-12


def least_s(device: torch.device, work: Callable[[], object]) -> float:
    """Of `work`, waited for; the first run does not count."""
    times = []
    for _ in range(1 + REPEATS):
        _wait(device)
        clock = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - clock)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
