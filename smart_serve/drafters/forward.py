"""Running a drafter's network over the rows of one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from smart_serve.drafters.network import DraftNetwork
from smart_serve.paging.buckets import Buckets, Capture
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.pack import pack_rows
from smart_serve.paging.ragged import ragged_rows
from smart_serve.paging.rows import Ints, Rows, joined

Inputs = Callable[[torch.Tensor], torch.Tensor]
"""Of the packed rows' tokens [N] the network's inputs [N, d]."""


class DraftForward(Protocol):
    """Packs rows and runs the network over them."""

    def run(self, groups: Sequence[Rows], inputs: Inputs) -> tuple[Ints, torch.Tensor]:
        """Where each sequence's rows begin [B + 1], and the features [N, f], which stand until the
        next run."""
        ...


def draft_forward(network: DraftNetwork, cache: KvCache) -> DraftForward:
    """Graphs on a GPU, which are captured now."""
    forward = GraphedDraftForward if network.weight.is_cuda else EagerDraftForward
    return forward(network, cache)


class EagerDraftForward:
    """One operation after another."""

    def __init__(self, network: DraftNetwork, cache: KvCache) -> None:
        self._network = network
        self._cache = cache

    def run(self, groups: Sequence[Rows], inputs: Inputs) -> tuple[Ints, torch.Tensor]:
        step = pack_rows(groups, self._cache, self._network.weight)
        return step.first_rows, self._network.forward(inputs(step.token_ids), step)


class GraphedDraftForward:
    """Passes that fit a bucket run as its graph, all others eagerly.

    The graph is that of the layers. What makes their inputs is not part of it, for a pass that
    catches up has the target's vectors, and one over tree nodes the features of their parents.
    """

    def __init__(
        self,
        network: DraftNetwork,
        cache: KvCache,
        *,
        capture: Capture[torch.Tensor] | None = None,
    ) -> None:
        self._network = network
        self._block_tokens = cache.block_tokens
        self._eager = EagerDraftForward(network, cache)
        self._buckets: Buckets[torch.Tensor] = Buckets(
            cache,
            axes=3 if network.has_mrope else 1,
            max_slots=cache.num_blocks * cache.block_tokens,
            capture=capture,
        )
        inputs = network.weight.new_zeros(self._buckets.rows[-1], network.input_size)
        self._buckets.capture(lambda step: network.forward(inputs[: len(step.token_ids)], step))
        self._inputs = inputs

    def run(self, groups: Sequence[Rows], inputs: Inputs) -> tuple[Ints, torch.Tensor]:
        step = ragged_rows(joined(groups), self._block_tokens)
        bucket, rows = self._buckets.find(step.size), step.size.rows
        if bucket is None:
            return self._eager.run(groups, inputs)
        packed = bucket.fill(step)
        self._inputs[:rows] = inputs(packed.token_ids[:rows])
        return step.first_rows, bucket.replay()[:rows]
