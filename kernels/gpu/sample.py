"""Sampling without a sort: one program per row, sums of whole numbers.

A token weighs round_down(2^44 · exp((l - max l) / T)), with the exponential in float32. Sums of
such weights are exact, whatever their order, so a row's token does not depend on the batch or on
how the work is split. Against the float64 reference about one draw in a million falls differently,
and tokens less likely than 2^-44 of the best one are never drawn.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.sample import COLDEST

TILE = 2048
_LOG2_E = tl.constexpr(1.4426950408889634)
_ONE = tl.constexpr(17592186044416.0)
"""2^44: weights of half a million tokens add up to less than 2^63."""
_COLDEST = tl.constexpr(COLDEST)
_NO_CUT = tl.constexpr(-(2**31))
_GAMMA = tl.constexpr(0x9E3779B97F4A7C15)


@triton.jit
def _mix(x):
    x = x + _GAMMA
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def keyed_uniforms(seeds, positions, out, num_rows, TILE: tl.constexpr):
    """As `kernels.sample.counter_uniform`, bit for bit."""
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = row < num_rows
    seed = tl.load(seeds + row, mask=inside, other=0).to(tl.uint64)
    position = tl.load(positions + row, mask=inside, other=0).to(tl.uint64)
    bits = _mix(_mix(seed) + position * _GAMMA)
    tl.store(out + row, (bits >> 11).to(tl.float64) * (1.0 / 9007199254740992.0), mask=inside)


@triton.jit
def _key(logit):
    """Whole numbers [int32] in the order of the logits."""
    bits = (logit + 0.0).to(tl.int32, bitcast=True)  # -0 and 0 are one
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _weight(logit, top, scale, min_p):
    weight = tl.exp2((logit - top) * scale)
    return tl.where(weight >= min_p, weight * _ONE, 0.0).to(tl.int64)


@triton.jit
def _weight_of_key(key, top, scale, min_p):
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    return _weight(bits.to(tl.float32, bitcast=True), top, scale, min_p)


@triton.jit
def _sum_from(
    row, vocab, first_key, top, scale, min_p, cut, ties, BY_COUNT: tl.constexpr, TILE: tl.constexpr
):
    """Number or weight of the tokens from `first_key` up, of those that (cut, ties) leaves."""
    total = tl.zeros([TILE], tl.int64)
    lowest = tl.maximum(first_key, cut + 1)
    for start in range(0, vocab, TILE):
        token = start + tl.arange(0, TILE)
        inside = token < vocab
        logit = tl.load(row + token, mask=inside, other=float("-inf")).to(tl.float32)
        counted = inside & (_key(logit) >= lowest)
        if BY_COUNT:
            total += counted.to(tl.int64)
        else:
            total += tl.where(counted, _weight(logit, top, scale, min_p), 0)
    result = tl.sum(total, 0)
    if first_key <= cut:
        result += ties * _weight_of_key(cut, top, scale, min_p)
    return result


@triton.jit
def _find_cut(
    row, vocab, wanted, top, scale, min_p, cut, ties, BY_COUNT: tl.constexpr, TILE: tl.constexpr
):
    """(key, n): the tokens above `key` and the first n of those at it reach `wanted`, and no fewer
    do. Bisection over all keys."""
    low, high = tl.full([], _NO_CUT, tl.int64), _key(top).to(tl.int64) + 1
    for _ in range(32):
        middle = (low + high) >> 1
        found = _sum_from(
            row, vocab, middle.to(tl.int32), top, scale, min_p, cut, ties, BY_COUNT, TILE
        )
        low = tl.where(found >= wanted, middle, low)
        high = tl.where(found >= wanted, high, middle)
    key = low.to(tl.int32)
    above = _sum_from(row, vocab, key + 1, top, scale, min_p, cut, ties, BY_COUNT, TILE)
    each = tl.full([], 1, tl.int64)
    if not BY_COUNT:
        each = tl.maximum(_weight_of_key(key, top, scale, min_p), 1)
    return key, (wanted - above + each - 1) // each


@triton.jit
def _draw(row, vocab, threshold, top, scale, min_p, cut, ties, TILE: tl.constexpr):
    """The first token whose cumulative weight exceeds `threshold`."""
    drawn = vocab
    weight_before, ties_before = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
    for start in range(0, vocab, TILE):
        token = start + tl.arange(0, TILE)
        inside = token < vocab
        logit = tl.load(row + token, mask=inside, other=float("-inf")).to(tl.float32)
        key = _key(logit)
        is_tie = (inside & (key == cut)).to(tl.int64)
        tie = ties_before + tl.cumsum(is_tie, 0)
        is_kept = inside & ((key > cut) | ((is_tie == 1) & (tie <= ties)))
        weight = tl.where(is_kept, _weight(logit, top, scale, min_p), 0)
        cumulative = weight_before + tl.cumsum(weight, 0)
        drawn = tl.minimum(drawn, tl.min(tl.where(cumulative > threshold, token, vocab), 0))
        weight_before += tl.sum(weight, 0)
        ties_before += tl.sum(is_tie, 0)
    return drawn


@triton.jit
def sample_row(
    logits, temperatures, top_ps, top_ks, min_ps, uniforms, out, vocab, row_stride,
    TILE: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    row = logits + index * row_stride
    top, best = tl.full([], float("-inf"), tl.float32), tl.full([], 0, tl.int32)
    for start in range(0, vocab, TILE):
        token = start + tl.arange(0, TILE)
        logit = tl.load(row + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
        tile_top = tl.max(logit, 0)
        tile_best = tl.min(tl.where(logit == tile_top, token, vocab), 0)
        best = tl.where(tile_top > top, tile_best, best)
        top = tl.maximum(top, tile_top)

    temperature = tl.load(temperatures + index)
    if temperature > 0.0:
        scale = (1.0 / tl.maximum(temperature, _COLDEST) * _LOG2_E).to(tl.float32)
        min_p = tl.load(min_ps + index).to(tl.float32)
        cut, ties = tl.full([], _NO_CUT, tl.int32), tl.full([], 0, tl.int64)
        top_k = tl.load(top_ks + index)
        if (top_k > 0) & (top_k < vocab):
            cut, ties = _find_cut(row, vocab, top_k, top, scale, min_p, cut, ties, True, TILE)
        total = _sum_from(row, vocab, _NO_CUT, top, scale, min_p, cut, ties, False, TILE)
        top_p = tl.load(top_ps + index)
        if top_p < 1.0:
            wanted = tl.maximum(tl.ceil(top_p * total.to(tl.float64)).to(tl.int64), 1)
            cut, ties = _find_cut(row, vocab, wanted, top, scale, min_p, cut, ties, False, TILE)
            total = _sum_from(row, vocab, _NO_CUT, top, scale, min_p, cut, ties, False, TILE)
        threshold = (tl.load(uniforms + index) * total.to(tl.float64)).to(tl.int64)
        threshold = tl.minimum(threshold, total - 1)
        best = _draw(row, vocab, threshold, top, scale, min_p, cut, ties, TILE)
    tl.store(out + index, best.to(tl.int64))


def sample(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    top_ps: torch.Tensor,
    top_ks: torch.Tensor,
    min_ps: torch.Tensor,
    uniforms: torch.Tensor,
) -> torch.Tensor:
    """As `kernels.sample.sample`; logits [R, V] of any floating type up to float32, finite."""
    num_rows, vocab = logits.shape
    assert logits.stride(1) == 1
    out = logits.new_empty(num_rows, dtype=torch.int64)
    if num_rows > 0:
        sample_row[(num_rows,)](
            logits, temperatures, top_ps, top_ks, min_ps, uniforms, out, vocab,
            logits.stride(0), TILE=TILE, num_warps=8,
        )  # fmt: skip
    return out


def uniforms(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """float64 in [0, 1) keyed by (seed, position), int64 both. [R]"""
    out = torch.empty_like(seeds, dtype=torch.float64)
    if len(seeds) > 0:
        grid = (triton.cdiv(len(seeds), 256),)
        keyed_uniforms[grid](seeds, positions, out, len(seeds), TILE=256)
    return out
