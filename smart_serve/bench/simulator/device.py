"""Synthetic accelerators: a roofline over public figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from smart_serve.bench.simulator.shapes import WEIGHT_BYTES

MEMORY_SHARE = 0.85
"""Of the bandwidth that streaming weights reaches; STREAM-like kernels get 80 to 92 %."""
MATRIX_SHARE = 0.65
"""Of the matrix rate that large products reach; vendors' libraries get 60 to 75 % of dense peak."""
SHARPNESS = 4.0
"""p of the soft maximum (m^p + c^p)^(1/p): where both bounds are equal a kernel takes 1.19 times
either, for loads and products overlap only in part."""
SMALL_TILE, LARGE_TILE, LARGE_FROM = 16, 64, 64
"""Rows are padded to the tile: 16 is the m of the matrix units' instruction; libraries take tiles
of 64 rows and more beyond that."""
KERNEL_GAP_MS = 0.002
"""Between two kernels of a recorded graph; 1.5 to 3 µs are usual."""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator. Vendors' figures: dense bfloat16, no sparsity."""

    name: str
    memory_gb: float
    bandwidth_gb_s: float
    matrix_tflops: float

    def product_ms(self, params: int, rows: int) -> float:
        """`rows` rows times matrices of `params` weights."""
        flops = 2.0 * params * _padded(rows)
        return self._roof_ms(params * WEIGHT_BYTES, flops)

    def attention_ms(self, kv_bytes: float, flops: float) -> float:
        """Keys and values read once per sequence."""
        return self._roof_ms(kv_bytes, flops)

    def _roof_ms(self, num_bytes: float, flops: float) -> float:
        memory = num_bytes / (self.bandwidth_gb_s * 1e6 * MEMORY_SHARE)
        matrix = flops / (self.matrix_tflops * 1e9 * MATRIX_SHARE)
        return math.pow(memory**SHARPNESS + matrix**SHARPNESS, 1.0 / SHARPNESS)


def _padded(rows: int) -> int:
    tile = SMALL_TILE if rows <= LARGE_FROM else LARGE_TILE
    return -(-rows // tile) * tile


DEVICES = {
    device.name: device
    for device in (
        # NVIDIA H100 SXM5 datasheet: 80 GB, 3.35 TB/s, 989 TFLOPS.
        Device("h100", 80.0, 3350.0, 989.0),
        # NVIDIA H200 SXM datasheet: 141 GB, 4.8 TB/s, 989 TFLOPS.
        Device("h200", 141.0, 4800.0, 989.0),
        # NVIDIA L40S datasheet: 48 GB, 864 GB/s, 362 TFLOPS.
        Device("l40s", 48.0, 864.0, 362.0),
        # NVIDIA RTX PRO 6000 Blackwell (workstation) datasheet: 96 GB, 1792 GB/s; 4 PFLOPS of
        # sparse FP4 are 500 TFLOPS of dense bfloat16.
        Device("rtx-pro-6000", 96.0, 1792.0, 500.0),
        # NVIDIA L4 datasheet: 24 GB, 300 GB/s, 121 TFLOPS.
        Device("l4", 24.0, 300.0, 121.0),
    )
}
