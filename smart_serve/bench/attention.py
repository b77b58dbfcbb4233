"""`python -m smart_serve.bench.attention`: tree attention alone, and the least that it could take.

A step's attention over as many layers as do not fit into a device's caches together, in one
captured graph on a GPU; the limit is that of reading every key and value once, or of the products.
"""

from __future__ import annotations

import argparse
import sys
from array import array
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from kernels.tree_attention import tree_attention
from smart_serve.bench import options
from smart_serve.bench.measured_limits import least_s, measured_roof
from smart_serve.bench.roof import Roof
from smart_serve.bench.simulator.shapes import SHAPES, ModelShape
from smart_serve.config import EngineConfig
from smart_serve.engine.packing import tree_rows
from smart_serve.engine.sequence import Sequence as EngineSequence
from smart_serve.messages import GenerateRequest
from smart_serve.models.fingerprint import device_name
from smart_serve.models.target import KvShape
from smart_serve.paging.buckets import CudaCapture
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.pack import pack_rows
from smart_serve.paging.rows import PackedStep
from smart_serve.speculation.tree import Forest

NUM_LAYERS = 4
"""At 2,048 tokens of a 7B LLaVA 134 MB; an H100's second-level cache has 50."""
CHILDREN = 4
"""Of every node but the leaves: a shape like that of EAGLE-2's trees."""


class AttentionBench:
    """Trees of one size behind contexts of one length, and random keys, values and queries."""

    def __init__(
        self, shape: ModelShape, batch: int, rows: int, context: int, like: torch.Tensor
    ) -> None:
        """In the dtype and on the device of `like`."""
        self._shape, self._batch, self._rows, self._context = shape, batch, rows, context
        size = EngineConfig().block_tokens
        blocks_each = -(-(context + rows) // size)
        kv = KvShape(NUM_LAYERS, shape.num_kv_heads, shape.head_dim)
        self._cache = KvCache(kv, 1 + batch * blocks_each, size, like.dtype, like.device)
        generator = torch.Generator(like.device).manual_seed(0)
        for plane in (*self._cache.keys, *self._cache.values):
            plane.normal_(generator=generator)
        heads = (batch * rows, shape.num_heads, shape.head_dim)
        self._query = like.new_empty(heads).normal_(generator=generator)
        sequences = [
            self._sequence(i, range(1 + i * blocks_each, 1 + (i + 1) * blocks_each))
            for i in range(batch)
        ]
        packed = tree_rows(sequences, trees(batch, rows - 1))
        self._step = pack_rows([packed], self._cache, like)

    def layer_ms(self) -> float:
        """Of one layer's attention; the least of several measurements."""
        run: Callable[[], object] = partial(self._attend, self._step)
        if self._query.is_cuda:
            capture: CudaCapture[torch.Tensor] = CudaCapture()
            _, run = capture(self._attend, self._step)
        return 1e3 * least_s(self._query.device, run) / NUM_LAYERS

    def least_ms(self, roof: Roof) -> float:
        """Of one layer, by what the device was seen to reach."""
        shape, slots = self._shape, self._context + self._rows
        kv_bytes = 2 * slots * shape.num_kv_heads * shape.head_dim * self._query.element_size()
        flops = 4 * self._rows * slots * shape.num_heads * shape.head_dim
        return roof.least_ms(self._batch * kv_bytes, self._batch * flops)

    def _attend(self, step: PackedStep) -> torch.Tensor:
        attention, scale = step.attention, self._shape.head_dim**-0.5
        layers = zip(attention.key_caches, attention.value_caches, strict=True)
        outputs = [
            tree_attention(self._query, keys, values, attention.rows, scale)
            for keys, values in layers
        ]
        return outputs[-1]

    def _sequence(self, number: int, blocks: range) -> EngineSequence:
        request = GenerateRequest(request_id=str(number), token_ids=(1,) * (self._context + 1))
        sequence = EngineSequence(number, request, (), seed=0)
        sequence.num_computed, sequence.blocks = self._context, array("q", blocks)
        return sequence


def trees(count: int, num_nodes: int) -> Forest:
    """`count` trees of `num_nodes` each, filled up layer by layer."""
    parents = np.arange(num_nodes) // CHILDREN
    depths = np.ones(num_nodes, np.int64)
    for node in range(CHILDREN, num_nodes):
        depths[node] = depths[parents[node] - 1] + 1
    total = count * num_nodes
    return Forest(
        offsets=num_nodes * np.arange(count + 1),
        token_ids=np.ones(total, np.int64),
        parents=np.tile(parents, count),
        depths=np.tile(depths, count),
        confidences=np.ones(total),
        path_probs=np.ones(total),
    )


@torch.inference_mode()
def main(words: Sequence[str] | None = None) -> int:
    """Print a line for each batch, context and number of rows."""
    parser = argparse.ArgumentParser(prog="python -m smart_serve.bench.attention")
    parser.add_argument("--shape", choices=SHAPES, default="llava-1.5-7b", help="(%(default)s)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=options.batches, default=(1, 8))
    parser.add_argument("--context", type=options.batches, default=(512, 2048))
    parser.add_argument("--rows", type=options.batches, default=(1, 16, 64), help="of a tree")
    asked = parser.parse_args(words)
    like = torch.empty(0, dtype=getattr(torch, asked.dtype), device=asked.device)
    roof, shape = measured_roof(like.device, like.dtype), SHAPES[asked.shape]
    print(f"{shape.name} in {asked.dtype} on {device_name(like.device)}; ms of one layer")
    for batch in asked.batch:
        for context in asked.context:
            for rows in asked.rows:
                bench = AttentionBench(shape, batch, rows, context, like)
                took, least = bench.layer_ms(), bench.least_ms(roof)
                where = f"batch {batch:>3}, context {context:>5}, {rows:>3} rows"
                print(f"  {where}: {took:.4f}, {took / least:.2f} times its limit of {least:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
