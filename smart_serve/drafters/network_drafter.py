"""Draft trees from a causal network over a paged cache of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from smart_serve.drafters.draft_part import DraftPart
from smart_serve.drafters.draft_tree import DraftTree, Held
from smart_serve.drafters.forward import DraftForward, draft_forward
from smart_serve.drafters.frontier import Frontier, committed_rows
from smart_serve.drafters.network import DraftNetwork
from smart_serve.drafters.protocol import (
    DraftBatch,
    DrafterInfo,
    DrafterUnavailable,
    DraftInput,
    Outcome,
    Proposal,
)
from smart_serve.paging.blocks import BlockPool
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import Ints, picked
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.policies import make_grower
from smart_serve.speculation.selector import ShapeChooser
from smart_serve.speculation.tree import FloatArray, Forest

_LOG = logging.getLogger(__name__)
JOINT_ROWS = 16
"""Inputs up to this long are attended in one padded group; longer ones (prompts) each alone."""


class NetworkDrafter:
    """Catches up with what was committed and grows trees, layer by layer."""

    def __init__(
        self,
        network: DraftNetwork,
        *,
        num_blocks: int,
        block_tokens: int,
        selector: ShapeChooser | None = None,
    ) -> None:
        self._network = network
        self.selector = selector
        weight = network.weight
        self._cache = KvCache(
            network.kv_shape, num_blocks, block_tokens, weight.dtype, weight.device
        )
        self._forward: DraftForward = draft_forward(network, self._cache)
        self._pool = BlockPool(num_blocks, block_tokens)
        self._held: dict[int, Held] = {}
        self._info = DrafterInfo(
            kind=network.kind,
            vectors=network.vectors,
            vector_size=network.vector_size,
            capture_layers=network.capture_layers,
            layer_cost=Curve((1.0,), (1.0,)),
        )

    @property
    def info(self) -> DrafterInfo:
        return self._info

    def set_layer_cost(self, layer_cost: Curve) -> None:
        """Measured on this device (see `drafters.measure`)."""
        self._info = replace(self._info, layer_cost=layer_cost)

    def run_by(self, forward: Callable[[DraftNetwork, KvCache], DraftForward]) -> None:
        """Another way to run its passes, from the next one on."""
        self._forward = forward(self._network, self._cache)

    @property
    def body_weights(self) -> int:
        """See `DraftNetwork`."""
        return self._network.body_weights

    @property
    def head_weights(self) -> int:
        """See `DraftNetwork`."""
        return self._network.head_weights

    @property
    def free_blocks(self) -> int:
        return self._pool.free

    @property
    def total_blocks(self) -> int:
        return self._pool.total

    def close(self, sequence_ids: Sequence[int]) -> None:
        for sequence_id in sequence_ids:
            held = self._held.pop(sequence_id, None)
            if held is not None:
                self._pool.release(held.blocks)

    def propose(self, batch: DraftBatch) -> Proposal:
        ((_, outcome),) = self.propose_together((batch,))
        if isinstance(outcome, DrafterUnavailable):
            raise outcome
        return outcome

    @torch.inference_mode()
    def propose_together(self, batches: Sequence[DraftBatch]) -> Iterator[tuple[int, Outcome]]:
        parts = []
        for number, batch in enumerate(batches):
            part = self._part(number, batch)
            if isinstance(part, DraftPart):
                parts.append(part)
            else:
                yield number, part
        if parts:
            yield from self._draft(parts)

    def _part(self, number: int, batch: DraftBatch) -> DraftPart | Outcome:
        """What is to be drafted for the batch; or the answer, where that is nothing."""
        placed = [self._place(item) for item in batch.inputs]
        trees = [tree for tree in placed if tree is not None]
        places = tuple(i for i, tree in enumerate(placed) if tree is not None)
        if not trees:
            return Proposal(Growth(Forest.empty(len(placed)), (), ()), tuple(range(len(placed))))
        try:
            grower = make_grower(batch.growth.of_trees(places), len(trees), self.selector)
        except Exception as error:
            return self._failed(trees, error)
        return DraftPart(number, batch, places, trees, grower, num_frontier=len(trees))

    def _draft(self, parts: list[DraftPart]) -> Iterator[tuple[int, Outcome]]:
        """All parts in one pass a layer; if a pass fails, each of them alone."""
        left = list(parts)
        try:
            for part in self._grow(parts):
                left.remove(part)
                yield part.number, self._outcome(part)
        except Exception as error:
            if len(left) == 1:
                yield left[0].number, self._failed(left[0].trees, error)
                return
            _LOG.warning("drafting for %d targets at once failed; each is tried alone", len(left))
            for part in left:
                part.rewind()
                self._release(part.trees)
            for part in left:
                again = self._part(part.number, part.batch)
                if isinstance(again, DraftPart):
                    yield from self._draft([again])
                else:
                    yield part.number, again

    def _outcome(self, part: DraftPart) -> Outcome:
        try:
            proposal = part.proposal()
        except Exception as error:
            return self._failed(part.trees, error)
        self._release(part.trees)
        return proposal

    def _failed(self, trees: list[DraftTree], error: Exception) -> DrafterUnavailable:
        _LOG.error("drafting %d trees failed", len(trees), exc_info=error)
        # What may not have been run must not count as held.
        self.close([tree.item.sequence_id for tree in trees])
        return DrafterUnavailable("the drafter failed")

    def _release(self, trees: list[DraftTree]) -> None:
        """The blocks that only tree nodes used."""
        for tree in trees:
            self._pool.release(tree.held.blocks, keep_tokens=tree.held.num_rows)

    def _place(self, item: DraftInput) -> DraftTree | None:
        """Room for the input's rows, or None: the sequence is not held up to `start`."""
        if item.start == 0:
            self.close([item.sequence_id])
            self._held[item.sequence_id] = Held()
        held = self._held.get(item.sequence_id)
        if held is None or held.next_start != item.start or len(item.token_ids) == 0:
            return None
        if self._network.accepts(item):
            positions = item.positions if self._network.has_mrope else None
            tree = DraftTree(held, item, self._network.read(item.token_ids), positions)
            if self._pool.grow(held.blocks, held.num_rows + len(tree.token_ids)):
                return tree
        self.close([item.sequence_id])
        return None

    def _grow(self, parts: list[DraftPart]) -> Iterator[DraftPart]:
        """catch up → (children → keep → expand)*; a part is given back once its trees are grown."""
        trees = [tree for part in parts for tree in part.trees]
        clock = time.perf_counter()
        frontier = self._catch_up(trees)
        while True:
            width = max(1, *(part.batch.growth.top_k for part in parts))
            token_ids, log_probs = self._children(frontier.features, width)
            chosen = self._chosen(parts, frontier, trees, token_ids, log_probs)
            # With what the policy took: each layer costs that too, and on a CPU it is not little.
            layer_ms = 1e3 * (time.perf_counter() - clock)
            for part, own in zip(parts, chosen, strict=True):
                part.end_layer(layer_ms, num_next=len(own))
            yield from (part for part in parts if part.num_frontier == 0)
            parts = [part for part in parts if part.num_frontier > 0]
            if not parts:
                return
            clock = time.perf_counter()
            frontier = self._expand(frontier, np.concatenate(chosen), token_ids, trees)

    def _catch_up(self, trees: list[DraftTree]) -> Frontier:
        """Run the newly committed rows; the last row of each tree is its root's."""
        order = sorted(range(len(trees)), key=lambda i: len(trees[i].token_ids) > JOINT_ROWS)
        inputs = [trees[i] for i in order]
        num_short = sum(len(tree.token_ids) <= JOINT_ROWS for tree in trees)
        alone = [inputs[i : i + 1] for i in range(num_short, len(inputs))]
        groups = [committed_rows(own) for own in (inputs[:num_short], *alone) if own]
        items = [tree.item for tree in inputs]
        first_rows, features = self._forward.run(
            groups, lambda token_ids: self._network.committed_inputs(token_ids, items)
        )
        for tree in trees:
            tree.commit()
        positions = np.concatenate([rows.positions for rows in groups], axis=1)
        roots = np.empty(len(trees), np.int64)
        roots[order] = first_rows[1:] - 1
        return Frontier.of_roots(picked(features, roots), positions[:, roots])

    def _expand(
        self, frontier: Frontier, chosen: Ints, token_ids: Ints, trees: list[DraftTree]
    ) -> Frontier:
        """Run the chosen children ([F * k] indices)."""
        parents = chosen // token_ids.shape[1]
        order = np.argsort(frontier.trees[parents], kind="stable")
        is_ordered = bool((order[1:] > order[:-1]).all())
        if not is_ordered:
            chosen, parents = chosen[order], parents[order]
        rows, below = frontier.below(parents, token_ids.reshape(-1)[chosen], trees)
        above = picked(frontier.features, parents)
        _, features = self._forward.run(
            [rows], lambda token_ids: self._network.node_inputs(token_ids, above)
        )
        if is_ordered:
            return replace(below, features=features)
        back = np.argsort(order)
        return below.picked(back, picked(features, back))

    def _children(self, features: torch.Tensor, top_k: int) -> tuple[Ints, FloatArray]:
        """Best tokens, as the target counts them, and their log-probabilities, both [F, k]."""
        log_probs = torch.log_softmax(self._network.logits(features).float(), dim=-1)
        best = log_probs.topk(min(top_k, log_probs.shape[1]), dim=-1)
        # In one copy, for the host waits for each; a token id is exact in float64.
        both = torch.cat((best.indices.double(), best.values.double())).cpu().numpy()
        token_ids = both[: len(features)].astype(np.int64)
        if self._network.target_ids is not None:
            token_ids = self._network.target_ids[token_ids]
        return token_ids, both[len(features) :]

    def _chosen(
        self,
        parts: list[DraftPart],
        frontier: Frontier,
        trees: list[DraftTree],
        token_ids: Ints,
        log_probs: FloatArray,
    ) -> list[Ints]:
        """For each part the children to expand, as indices into the flattened [F * k] of all."""
        chosen, first, width = [], 0, token_ids.shape[1]
        for part in parts:
            rows = slice(first, first + part.num_frontier)
            own = first * width + part.add_layer(token_ids[rows], log_probs[rows])
            # Where there is no room for a layer, the trees stop growing.
            has_room = self._has_room(trees, frontier.trees[own // width])
            chosen.append(own if has_room else own[:0])
            first = rows.stop
        return chosen

    def _has_room(self, trees: list[DraftTree], owners: Ints) -> bool:
        """Whether there are blocks for new rows of the trees `owners`, one number a row."""
        numbers, counts = np.unique(owners, return_counts=True)
        return all(
            self._pool.grow(trees[number].held.blocks, trees[number].num_rows + count)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        )
