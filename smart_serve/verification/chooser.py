"""Where verification rules take their randomness from.

A rule is a fixed sequence of decisions over the whole batch: the tree shapes alone say how many.
So one rule runs on uniforms in the engine, and over all outcomes at once in the proof of its law.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from kernels.sample import counter_uniform, inverse_cdf
from smart_serve.speculation.tree import IntArray

_STREAM = 0x5DEECE66D
"""Keeps these uniforms apart from those of sample-and-match, which are keyed by (seed, position).
Any odd constant would do."""
DECISIONS_PER_NODE = 16
"""Numbers that one node's decisions may take: one for the token, one for each draw."""


class Chooser(Protocol):
    """Makes one decision per tree, B at a time. A decision's number is its own, whatever else is
    decided for the other trees."""

    def bernoulli(self, probs: torch.Tensor, number: int) -> torch.Tensor:
        """True with probability `probs` [B]."""
        ...

    def categorical(self, weights: torch.Tensor, number: int) -> torch.Tensor:
        """A token by `weights` [B, V], which need not add up to 1. [B]"""
        ...


class CounterChooser:
    """Decision number d of a tree uses the uniform keyed by (seed, position of its root, d), so it
    does not depend on the other trees of the batch."""

    def __init__(self, seeds: IntArray, positions: IntArray, device: torch.device) -> None:
        bits = counter_uniform(seeds ^ _STREAM, positions) * 2.0**53
        self._keys = bits.astype(np.int64)  # [B]
        self._device = device
        self._blocks: dict[int, torch.Tensor] = {}

    def bernoulli(self, probs: torch.Tensor, number: int) -> torch.Tensor:
        return self.uniforms(number) < probs

    def categorical(self, weights: torch.Tensor, number: int) -> torch.Tensor:
        return inverse_cdf(weights, self.uniforms(number))

    def uniforms(self, number: int) -> torch.Tensor:
        """[B]; made, and copied to the device, for a node's decisions at once."""
        block, place = divmod(number, DECISIONS_PER_NODE)
        if block not in self._blocks:
            counters = block * DECISIONS_PER_NODE + np.arange(DECISIONS_PER_NODE)
            keys, numbers = np.broadcast_arrays(self._keys, counters[:, None])
            uniforms = torch.from_numpy(counter_uniform(keys, numbers))
            self._blocks[block] = uniforms.to(self._device)
        return self._blocks[block][place]
