"""Choose one token per row from logits: greedy, or by one given uniform through the inverse CDF.

    p = softmax(logits / T), cut to what is at least min_p of the most likely, then to the top_k
        most likely, and then to the smallest set of mass top_p
    token = min {v : Σ_{w ≤ v} p_w > u · Σ_w p_w}

The uniform comes from outside (see `counter_uniform`), so a row's token depends on its own logits
and its own (seed, position) alone, never on the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.to_device import to_device

COLDEST = 1e-30
"""Lower temperatures are taken as this one: even here any two float32 logits that differ are worlds
apart, and further down a logit over a temperature is no finite number."""


def counter_uniform(seeds: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniforms in [0, 1) keyed by (seed, position), both [R]: SplitMix64's finaliser, twice.

    Source of the mixing constants: Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014 (and Stafford's variant 13).
    """
    with np.errstate(over="ignore"):
        keyed = _mix(seeds.astype(np.uint64)) + positions.astype(np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        bits = _mix(keyed)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keyed_uniforms(
    seeds: NDArray[np.int64], positions: NDArray[np.int64], device: torch.device
) -> torch.Tensor:
    """`counter_uniform` computed on `device`. [R] float64"""
    if device.type == "cuda":
        from kernels.gpu.sample import uniforms

        return uniforms(*to_device(np.stack((seeds, positions)), device))
    return torch.from_numpy(counter_uniform(seeds, positions))


def sample(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    top_ps: torch.Tensor,
    top_ks: torch.Tensor,
    min_ps: torch.Tensor,
    uniforms: torch.Tensor,
) -> torch.Tensor:
    """Token per row [R] from logits [R, V]; temperatures, top_ps, min_ps, uniforms [R] float64,
    top_ks [R] int64 (0: no limit). Rows of temperature 0 take the arg-max."""
    if logits.is_cuda:
        from kernels.gpu.sample import sample as sample_on_gpu

        return sample_on_gpu(logits, temperatures, top_ps, top_ks, min_ps, uniforms)
    greedy = logits.argmax(dim=-1)
    is_greedy = temperatures == 0
    if bool(is_greedy.all()):
        return greedy
    probs = target_probs(logits, temperatures, top_ps, top_ks, min_ps)
    return torch.where(is_greedy, greedy, inverse_cdf(probs, uniforms))


def inverse_cdf(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """min {v : Σ_{w ≤ v} weights_w > u · Σ_w weights_w} per row of weights [R, V] ≥ 0, which need
    not add up to 1. [R]"""
    cdf = weights.cumsum(dim=-1)
    total = cdf[:, -1:]
    # u < 1, but u · total may round up to total; the last token with any mass is then meant.
    below_total = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(uniforms.unsqueeze(1) * total, below_total)
    return torch.searchsorted(cdf, threshold, right=True).squeeze(1)


def target_probs(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    top_ps: torch.Tensor,
    top_ks: torch.Tensor,
    min_ps: torch.Tensor,
) -> torch.Tensor:
    """p_target [R, V] in float64, after temperature, min-p, top-k and top-p; not renormalised after
    the cuts. Rows of temperature 0 are treated as temperature 1 and left to the caller."""
    warm = temperatures.clamp(min=COLDEST)
    scale = torch.where(temperatures == 0, torch.ones_like(temperatures), warm)
    probs = torch.softmax(logits.double() / scale.unsqueeze(1), dim=-1)
    if bool((min_ps > 0).any()):
        floor = min_ps.unsqueeze(1) * probs.amax(dim=-1, keepdim=True)
        probs = torch.where(probs < floor, torch.zeros_like(probs), probs)
    if bool((top_ks == 0).all()) and bool((top_ps >= 1).all()):
        return probs
    vocab = logits.shape[1]
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab, device=logits.device).unsqueeze(0)
    keep_k = (top_ks.unsqueeze(1) == 0) | (rank < top_ks.unsqueeze(1))
    ordered = ordered * keep_k
    # The token that crosses top_p is kept: mass before it is still below top_p of what is left.
    mass_before = ordered.cumsum(dim=-1) - ordered
    keep_p = mass_before < top_ps.unsqueeze(1) * ordered.sum(dim=-1, keepdim=True)
    # A row without top_p is not cut at all: rounding would drop its far tail, and only when another
    # row of the batch brings it here.
    keep_p |= top_ps.unsqueeze(1) >= 1
    keep_p |= rank == 0  # even where top_p of the mass rounds to nothing
    return torch.zeros_like(probs).scatter_(1, order, ordered * keep_p)
