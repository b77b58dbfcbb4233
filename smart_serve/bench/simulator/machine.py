"""A model on a device: true step times, and the tables that a replica would have measured."""

from __future__ import annotations

from dataclasses import dataclass

from smart_serve.bench.simulator.device import KERNEL_GAP_MS, Device
from smart_serve.bench.simulator.shapes import WEIGHT_BYTES, ModelShape
from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.cost_grid import BATCHES, CONTEXTS, LAYER_ROWS, CostGrid, Room

KERNELS_PER_LAYER = 10
"""Of a fused decoder layer: norms, projections, rotary embedding, attention, MLP."""
DRAFT_HOST_MS = 0.15
"""A draft layer's top k, masks and copies, which no recorded graph holds."""

LAYER_CONTEXT = 64
"""As in smart_serve/drafters/measure.py."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Milliseconds of the passes of one target and its drafter, side by side on one device."""

    device: Device
    shape: ModelShape

    def verify_ms(self, num_tokens: int, batch: int, context: float) -> float:
        """One target forward over `num_tokens` packed tokens of `batch` sequences."""
        shape, kv_tokens = self.shape, batch * context
        attention = self.device.attention_ms(
            shape.kv_bytes_per_layer * kv_tokens, 4.0 * num_tokens * context * shape.hidden_size
        )
        gaps = shape.num_layers * KERNELS_PER_LAYER * KERNEL_GAP_MS
        products = self.device.product_ms(shape.target_params, num_tokens)
        return products + shape.num_layers * attention + gaps

    def draft_layer_ms(self, rows: int, heads: int, batch: int, context: float) -> float:
        """One drafting pass over `rows` rows, `heads` of which are asked for children."""
        shape = self.shape
        attention = self.device.attention_ms(
            shape.kv_bytes_per_layer * batch * context, 4.0 * rows * context * shape.hidden_size
        )
        products = self.device.product_ms(shape.draft_params, rows)
        products += self.device.product_ms(shape.head_params, heads)
        return products + attention + KERNELS_PER_LAYER * KERNEL_GAP_MS + DRAFT_HOST_MS

    def cost_table(self) -> CostTable:
        """What a replica with room for every batch would measure at start."""
        room = Room(BATCHES[-1] * 2 * CONTEXTS[-1], 1, 2 * CONTEXTS[-1])
        grid = CostGrid.within(room, BATCHES[-1])
        return grid.measure(
            lambda batch, rows, context: self.verify_ms(batch * rows, batch, context),
            lambda done, total: None,
        )

    def layer_cost(self) -> Curve:
        """What a drafter would measure at start: one row for each of as many sequences."""
        times = [self.draft_layer_ms(rows, rows, rows, LAYER_CONTEXT) for rows in LAYER_ROWS]
        return Curve.monotone(LAYER_ROWS, times)

    def holds(self, batch: int, context: float) -> bool:
        """Whether weights and KV cache of that many sequences fit into the device's memory."""
        shape = self.shape
        params = shape.target_params + 2 * shape.head_params + shape.draft_params
        kv_bytes = (shape.num_layers + 1) * shape.kv_bytes_per_layer * batch * context
        return params * WEIGHT_BYTES + kv_bytes < self.device.memory_gb * 1e9
