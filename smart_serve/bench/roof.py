"""What a device was seen to reach, and so what a pass cannot take less than."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class Roof(msgspec.Struct, frozen=True):
    """Of one device and dtype, measured."""

    copy_gb_s: float
    """10⁹ bytes a second, those read and those written together."""
    matrix_tflops: float
    """10¹² floating-point operations a second of a large product."""

    def least_ms(self, num_bytes: float, flops: float) -> float:
        """For moving `num_bytes` while doing `flops` operations."""
        return max(num_bytes / (self.copy_gb_s * 1e6), flops / (self.matrix_tflops * 1e9))


@dataclass(frozen=True, slots=True)
class Limit:
    """The least time of a network's pass: every weight is read once, and so is what is cached of
    each sequence; every row is multiplied with every weight that it passes.

    Attention's own products and all that lies between the matrices are left out. So it is never
    too high, but for weights that the device's caches hold from one pass to the next.
    """

    roof: Roof
    body_weights: int
    head_weights: int
    element_bytes: int
    kv_elements: int = 0
    """Of one cached token, in all layers."""

    def least_ms(self, rows: float, head_rows: float = 1.0, cached: float = 0.0) -> float:
        """Of a pass over `rows` rows, `head_rows` of which pass the head; `cached`: tokens of all
        sequences together that it reads."""
        weights = self.body_weights + self.head_weights
        num_bytes = self.element_bytes * (weights + cached * self.kv_elements)
        flops = 2.0 * (rows * self.body_weights + head_rows * self.head_weights)
        return self.roof.least_ms(num_bytes, flops)
