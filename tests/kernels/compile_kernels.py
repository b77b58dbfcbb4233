"""Compiles every Triton kernel for GPUs that are not here, and checks what comes out.

A program of its own: a process that interprets kernels cannot compile them. Every line it prints is
one compiled kernel; it fails on the first that does not compile or asks for too much memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.gpu import kv, sample, tree_attention, verify
from kernels.tree_attention import TILE_ROWS

SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""What one block may have at most (CUDA C programming guide, compute capabilities)."""


@dataclass(frozen=True)
class Variant:
    """A kernel with the types of its arguments and its compile-time constants."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4

    def compile(self, architecture: int) -> Any:
        types = {
            name: "constexpr" if name in self.constants else self.types[name]
            for name in self.kernel.arg_names
        }
        source = ASTSource(self.kernel, types, self.constants)
        target = GPUTarget("cuda", architecture, 32)
        return triton.compile(source, target=target, options={"num_warps": self.warps})


def attention(dtype: str, dim: int, group: int) -> Variant:
    types = dict.fromkeys(("query", "keys", "values"), f"*{dtype}")
    types |= dict.fromkeys(("tiles", "sequences", "blocks", "prefixes", "ancestors"), "*i64")
    types |= {"out": "*fp32", "log_sums": "*fp32", "num_rows": "i32", "scale_log2": "fp32"}
    types |= {"query_row_stride": "i32", "query_head_stride": "i32"}
    constants = tree_attention.constants(
        head_dim=dim, heads=8 * group, kv_heads=8, block_tokens=16, words=2, splits=4,
        tile_rows=TILE_ROWS, is_half=dtype != "fp32",
    )  # fmt: skip
    warps = constants.pop("num_warps")
    return Variant(tree_attention.attend_tiles, types, constants, warps)


def join(dtype: str, dim: int) -> Variant:
    types = {"parts": "*fp32", "log_sums": "*fp32", "out": f"*{dtype}", "num_places": "i32"}
    constants = {"HEAD_DIM": dim, "DIM_PADDED": dim, "SPLITS": 16}
    return Variant(tree_attention.join_splits, types, constants)


def moves(dtype: str) -> Iterator[Variant]:
    pointers = dict.fromkeys(("key_cache", "value_cache", "keys", "values", "cache"), f"*{dtype}")
    pointers |= dict.fromkeys(("slots", "first_rows", "paths", "lengths"), "*i64")
    numbers = dict.fromkeys(("num_slots", "row_size", "max_length"), "i32")
    strides = [f"{part}_{kind}_stride" for part in ("key", "value") for kind in ("row", "head")]
    types = {**pointers, **numbers, **dict.fromkeys(strides, "i32")}
    yield Variant(kv.write_rows, types, {"HEAD_DIM": 128, "CHUNK": kv.CHUNK})
    yield Variant(kv.move_paths, types, {"CHUNK": kv.CHUNK})


def sampling(dtype: str) -> Variant:
    types = {"logits": f"*{dtype}", "top_ks": "*i64", "out": "*i64"}
    types |= dict.fromkeys(("temperatures", "top_ps", "min_ps", "uniforms"), "*fp64")
    types |= {"vocab": "i32", "row_stride": "i32"}
    return Variant(sample.sample_row, types, {"TILE": sample.TILE}, warps=8)


def without_dtype() -> Iterator[Variant]:
    types = {"seeds": "*i64", "positions": "*i64", "out": "*fp64", "num_rows": "i32"}
    yield Variant(sample.keyed_uniforms, types, {"TILE": 256})
    types = dict.fromkeys(verify.walk_trees.arg_names, "*i64") | {"max_length": "i32"}
    yield Variant(verify.walk_trees, types, {"TILE": 512})


def variants(*, everything: bool) -> Iterator[Variant]:
    dtypes = ("bf16", "fp16", "fp32") if everything else ("bf16",)
    dims, groups = ((64, 128), (1, 4, 7, 8)) if everything else ((128,), (4,))
    yield from without_dtype()
    for dtype in dtypes:
        yield from moves(dtype)
        yield sampling(dtype)
    for dtype, dim in product(dtypes, dims):
        yield from (attention(dtype, dim, group) for group in groups)
        yield join(dtype, dim)
    if not everything:
        yield attention("fp32", 128, 8)  # the largest


def main() -> None:
    everything = "--all" in sys.argv
    # sm_89 has the least shared memory: what fits there fits everywhere.
    architectures = SHARED_BYTES if everything else {89: SHARED_BYTES[89]}
    for variant in variants(everything=everything):
        for architecture, limit in architectures.items():
            compiled = variant.compile(architecture)
            shared = compiled.metadata.shared
            assert shared <= limit, f"{variant} takes {shared} bytes on sm_{architecture}"
            assert f".target sm_{architecture}" in compiled.asm["ptx"]
            print(f"sm_{architecture} {shared:6} bytes {variant.kernel.__name__} {variant.types}")


if __name__ == "__main__":
    main()
