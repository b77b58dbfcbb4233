"""Drafters on the target's hidden states (EAGLE-1/2 and MSD checkpoints), over a paged cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from smart_serve.drafters.feature_network import FeatureDraftNetwork
from smart_serve.drafters.protocol import DraftBatch, DrafterInfo, DraftInput, Proposal
from smart_serve.models.target import kv_shape
from smart_serve.paging.blocks import BlockPool
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import Ints, Rows, pack_rows
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.growth import Growth, TreeGrower
from smart_serve.speculation.policies import make_grower
from smart_serve.speculation.tree import Forest

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

JOINT_ROWS = 16
"""Inputs up to this long are attended in one padded group; longer ones (prompts) each alone."""


@dataclass(slots=True)
class _Held:
    """What the drafter holds of one sequence."""

    blocks: list[int] = field(default_factory=list)
    num_rows: int = 0


@dataclass(slots=True)
class _Tree:
    """Expanded nodes of one tree in the step's passes so far, in cache order."""

    held: _Held
    visible: Mask  # [rows, rows] ancestors and itself


@dataclass(frozen=True, slots=True)
class _Frontier:
    """The rows of the last pass, whose children come next."""

    features: torch.Tensor  # [F, h]
    trees: Ints  # [F]
    rows: Ints  # [F] row within its tree's expanded nodes; unused for roots


class FeatureDrafter:
    """One decoder layer that predicts the target's next hidden state; owns its KV cache."""

    def __init__(
        self,
        network: FeatureDraftNetwork,
        head: nn.Linear,
        *,
        image_token_id: int | None,
        num_blocks: int,
        block_tokens: int,
    ) -> None:
        self._network = network
        self._head = head
        self._image_token_id = image_token_id
        shape = kv_shape(network.config)
        weight = head.weight
        self._cache = KvCache(shape, num_blocks, block_tokens, weight.dtype, weight.device)
        self._pool = BlockPool(num_blocks, block_tokens)
        self._held: dict[int, _Held] = {}
        self._info = DrafterInfo(
            kind="msd",
            vectors="hidden",
            vector_size=network.config.hidden_size,
            capture_layers=(),
            layer_cost=Curve((1.0,), (1.0,)),
        )

    @property
    def info(self) -> DrafterInfo:
        return self._info

    def set_layer_cost(self, layer_cost: Curve) -> None:
        """Measured on this device (see `drafters.measure`)."""
        self._info = replace(self._info, layer_cost=layer_cost)

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

    @torch.inference_mode()
    def propose(self, batch: DraftBatch) -> Proposal:
        held = [self._catch_up_place(item) for item in batch.inputs]
        known = [i for i, place in enumerate(held) if place is not None]
        unknown = tuple(i for i, place in enumerate(held) if place is None)
        if not known:
            nothing = Growth(Forest.empty(len(batch.inputs)), (), ())
            return Proposal(nothing, unknown)
        trees = [_Tree(place, np.zeros((0, 0), np.bool_)) for place in held if place is not None]
        inputs = [batch.inputs[i] for i in known]
        growth, layer_ms, layer_rows = self._grow(batch, inputs, trees)
        if unknown:
            forest = growth.forest.spread(len(batch.inputs), known)
            growth = Growth(forest, growth.best_by_depth, growth.child_mass)
        for tree in trees:
            self._pool.release(tree.held.blocks, keep_tokens=tree.held.num_rows)
        return Proposal(growth, unknown, tuple(layer_ms), tuple(layer_rows))

    def _grow(
        self, batch: DraftBatch, inputs: list[DraftInput], trees: list[_Tree]
    ) -> tuple[Growth, list[float], list[int]]:
        """catch up → (children → keep → expand)* → finish."""
        num_rows = sum(len(item.token_ids) for item in inputs)
        grower = make_grower(batch.growth, len(inputs), num_rows)
        top_k = min(batch.growth.top_k, self._head.out_features)
        layer_ms, layer_rows = [], []
        clock = time.perf_counter()
        frontier = self._catch_up(inputs, trees)
        while True:
            token_ids, log_probs = self._children(frontier.features, top_k)
            now = time.perf_counter()
            layer_ms.append(1e3 * (now - clock))
            layer_rows.append(num_rows)
            chosen = self._with_room(
                grower, grower.add_layer(token_ids, log_probs), frontier, trees
            )
            if len(chosen) == 0:
                return grower.finish(), layer_ms, layer_rows
            clock, num_rows = time.perf_counter(), len(chosen)
            frontier = self._expand(frontier, chosen, token_ids, trees, len(layer_ms))

    def _catch_up_place(self, item: DraftInput) -> _Held | None:
        """Room for the input's rows, or None: the sequence is not held up to `start`."""
        if item.start == 0:
            self.close([item.sequence_id])
            self._held[item.sequence_id] = _Held()
        held = self._held.get(item.sequence_id)
        if held is None or held.num_rows != item.start or len(item.token_ids) == 0:
            return None
        if item.vectors is None or not self._pool.grow(
            held.blocks, held.num_rows + len(item.token_ids)
        ):
            self.close([item.sequence_id])
            return None
        return held

    def _catch_up(self, inputs: list[DraftInput], trees: list[_Tree]) -> _Frontier:
        """Run the newly committed rows; the last row of each input is its root's."""
        order = sorted(range(len(inputs)), key=lambda i: len(inputs[i].token_ids) > JOINT_ROWS)
        rows = [self._input_rows(inputs[i], trees[i].held) for i in order]
        short = [row for row in rows if len(row.token_ids) <= JOINT_ROWS]
        groups = [short, *([row] for row in rows[len(short) :])]
        vectors = torch.cat([_vectors(inputs[i]) for i in order])
        features, first_rows = self._forward(groups, vectors)
        last = np.empty(len(inputs), np.int64)
        last[order] = first_rows[1:] - 1
        for item, tree in zip(inputs, trees, strict=True):
            tree.held.num_rows += len(item.token_ids)
        everything = np.arange(len(inputs))
        return _Frontier(features[torch.from_numpy(last)], everything, everything)

    def _expand(
        self, frontier: _Frontier, chosen: Ints, token_ids: Ints, trees: list[_Tree], depth: int
    ) -> _Frontier:
        """Run the chosen children ([F * k] indices) at `depth` (1 for children of roots)."""
        parents = chosen // token_ids.shape[1]
        tree_of = frontier.trees[parents]
        order = np.argsort(tree_of, kind="stable")
        chosen_tokens = token_ids.reshape(-1)[chosen]
        rows: list[Rows] = []
        row_of = np.empty(len(chosen), np.int64)
        for index in np.unique(tree_of):
            mine = order[tree_of[order] == index]
            tree = trees[index]
            row_of[mine] = len(tree.visible) + np.arange(len(mine))
            above = None if depth == 1 else frontier.rows[parents[mine]]
            tree.visible = _add_rows(tree.visible, above, len(mine))
            position = tree.held.num_rows - 1 + depth
            rows.append(
                Rows(
                    blocks=tree.held.blocks,
                    num_committed=tree.held.num_rows,
                    token_ids=chosen_tokens[mine],
                    positions=np.full(len(mine), position),
                    visible=tree.visible[-len(mine) :],
                )
            )
        vectors = frontier.features[torch.from_numpy(parents[order])]
        features, _ = self._forward([rows], vectors)
        back = np.empty(len(chosen), np.int64)
        back[order] = np.arange(len(chosen))
        return _Frontier(features[torch.from_numpy(back)], tree_of, row_of)

    def _forward(
        self, groups: list[list[Rows]], vectors: torch.Tensor
    ) -> tuple[torch.Tensor, Ints]:
        """Predicted features [N, h] of packed rows, and each sequence's first row."""
        weight = self._head.weight
        step = pack_rows(groups, self._cache, weight)
        vectors = vectors.to(weight)
        fused = self._network.fuse(self._network.embed_tokens(step.token_ids), vectors)
        if self._image_token_id is not None:
            is_image = (step.token_ids == self._image_token_id).unsqueeze(1)
            fused = torch.where(is_image, vectors, fused)
        features = self._network(
            fused.unsqueeze(0), step.positions.unsqueeze(0), step=step.attention
        )
        return features[0], step.first_rows

    def _children(self, features: torch.Tensor, top_k: int) -> tuple[Ints, Floats]:
        """Best tokens and their log-probabilities, both [F, k]."""
        log_probs = torch.log_softmax(self._head(features).float(), dim=-1)
        best = log_probs.topk(top_k, dim=-1)
        return best.indices.cpu().numpy(), best.values.double().cpu().numpy()

    def _with_room(
        self, grower: TreeGrower, chosen: Ints, frontier: _Frontier, trees: list[_Tree]
    ) -> Ints:
        """`chosen` if every tree's new rows have blocks, else nothing: the trees stop growing."""
        if len(chosen) == 0:
            return chosen
        width = len(grower.layers[-1].trees) // len(frontier.trees)
        counts = np.bincount(frontier.trees[chosen // width], minlength=len(trees))
        for tree, count in zip(trees, counts.tolist(), strict=True):
            used = tree.held.num_rows + len(tree.visible)
            if not self._pool.grow(tree.held.blocks, used + count):
                return chosen[:0]
        return chosen

    @staticmethod
    def _input_rows(item: DraftInput, held: _Held) -> Rows:
        n = len(item.token_ids)
        return Rows(
            blocks=held.blocks,
            num_committed=held.num_rows,
            token_ids=item.token_ids,
            positions=held.num_rows + np.arange(n),
            visible=np.tri(n, dtype=np.bool_),
        )


def _vectors(item: DraftInput) -> torch.Tensor:
    assert item.vectors is not None
    return item.vectors


def _add_rows(visible: Mask, parents: Ints | None, count: int) -> Mask:
    """[r + count, r + count]: new rows see their parent's ancestors, the parent, and themselves."""
    size = len(visible)
    grown = np.zeros((size + count, size + count), np.bool_)
    grown[:size, :size] = visible
    if parents is not None:
        grown[size:, :size] = visible[parents]
    grown[np.arange(size, size + count), np.arange(size, size + count)] = True
    return grown
