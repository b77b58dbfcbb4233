"""Writing a step's keys and values into the paged cache, and moving those that are accepted."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

CHUNK = 1024
"""Elements that one program moves at a time."""


@triton.jit
def write_rows(
    key_cache, value_cache, keys, values, slots, num_slots, row_size,
    key_row_stride, key_head_stride, value_row_stride, value_head_stride,
    HEAD_DIM: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    slot = tl.load(slots + row)
    inside = (element < row_size) & (slot >= 0) & (slot < num_slots)
    head, dim = element // HEAD_DIM, element % HEAD_DIM
    key = tl.load(keys + row * key_row_stride + head * key_head_stride + dim, mask=inside)
    value = tl.load(values + row * value_row_stride + head * value_head_stride + dim, mask=inside)
    tl.store(key_cache + slot * row_size + element, key, mask=inside)
    tl.store(value_cache + slot * row_size + element, value, mask=inside)


@triton.jit
def move_paths(
    cache, slots, first_rows, paths, lengths, num_slots, row_size, max_length,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """One program per (tree, plane, chunk). A path's rows increase and move to the front, so going
    along it never overwrites what is still to be read; an element is one thread's throughout."""
    tree, plane = tl.program_id(0), tl.program_id(1).to(tl.int64)
    element = tl.program_id(2) * CHUNK + tl.arange(0, CHUNK)
    first_row, end_row = tl.load(first_rows + tree), tl.load(first_rows + tree + 1)
    length = tl.minimum(tl.load(lengths + tree), tl.minimum(max_length, end_row - first_row - 1))
    base = cache + plane * num_slots * row_size + element
    for place in range(length):
        row = tl.load(paths + tree * max_length + place)
        is_row = (row > 0) & (first_row + row < end_row)
        source = tl.load(slots + first_row + row, mask=is_row, other=-1)
        target = tl.load(slots + first_row + place + 1)
        inside = (element < row_size) & (source != target)
        inside &= (source >= 0) & (source < num_slots) & (target >= 0) & (target < num_slots)
        moved = tl.load(base + source * row_size, mask=inside)
        tl.store(base + target * row_size, moved, mask=inside)


def write(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """As `kernels.kv_write.kv_write`; a slot outside the cache is left out."""
    num_rows, heads, dim = keys.shape
    assert key_cache.is_contiguous()
    assert value_cache.is_contiguous()
    assert keys.stride(2) == values.stride(2) == 1
    row_size, num_slots = heads * dim, key_cache.shape[0] * key_cache.shape[1]
    if num_rows > 0:
        chunk = min(CHUNK, triton.next_power_of_2(row_size))
        write_rows[(num_rows, triton.cdiv(row_size, chunk))](
            key_cache, value_cache, keys, values, slots, num_slots, row_size,
            keys.stride(0), keys.stride(1), values.stride(0), values.stride(1),
            HEAD_DIM=dim, CHUNK=chunk,
        )  # fmt: skip


def commit(
    cache: torch.Tensor,
    slots: torch.Tensor,
    first_rows: torch.Tensor,
    paths: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """As `kernels.kv_commit.kv_commit`."""
    planes, num_slots, heads, dim = cache.shape
    assert cache.is_contiguous()
    row_size, (trees, max_length) = heads * dim, paths.shape
    if paths.numel() > 0:
        chunk = min(CHUNK, triton.next_power_of_2(row_size))
        move_paths[(trees, planes, triton.cdiv(row_size, chunk))](
            cache, slots, first_rows, paths, lengths, num_slots, row_size, max_length, CHUNK=chunk
        )
