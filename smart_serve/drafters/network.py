"""What differs between the drafters that are networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from smart_serve.drafters.protocol import DraftInput, VectorKind
from smart_serve.models.target import KvShape
from smart_serve.paging.rows import Ints, PackedStep


class DraftNetwork(ABC):
    """A causal network over the rows of a sequence: from a row to what may follow it.

    `NetworkDrafter` owns its cache and grows the trees. N packed rows; d, f the widths of the
    network's inputs and features; V its own vocabulary, which may be a part of the target's.
    """

    kind: str
    vectors: VectorKind
    vector_size: int | None
    capture_layers: tuple[int, ...] = ()
    kv_shape: KvShape
    num_embeddings: int
    """Token ids from here on are unknown to it."""
    has_mrope: bool = False
    """It takes the tokens' own positions on three axes; otherwise its rows are counted."""
    target_ids: NDArray[np.int64] | None = None
    """The target's id of each of its V tokens; None: they are the same."""

    @property
    @abstractmethod
    def weight(self) -> torch.Tensor:
        """Any weight: it runs in this dtype, on this device."""

    @property
    @abstractmethod
    def input_size(self) -> int:
        """d"""

    @property
    @abstractmethod
    def body_weights(self) -> int:
        """Of the matrices that every row of a drafting pass passes."""

    @property
    @abstractmethod
    def head_weights(self) -> int:
        """Of the head, which only rows pass that get children."""

    @property
    def shape(self) -> dict[str, object]:
        """What the cost of a pass depends on."""
        kv = self.kv_shape
        return {
            "kind": self.kind,
            "input_size": self.input_size,
            "kv": (kv.num_layers, kv.num_kv_heads, kv.head_dim),
            "body_weights": self.body_weights,
            "head_weights": self.head_weights,
        }

    def accepts(self, item: DraftInput) -> bool:
        """Whether the input's tokens and vectors are what this network reads."""
        return item.vectors is not None and self.knows(item.token_ids)

    def knows(self, token_ids: Ints) -> bool:
        """Whether all of these tokens have embeddings."""
        return int(token_ids.max(initial=0)) < self.num_embeddings

    def read(self, token_ids: Ints) -> Ints:
        """The tokens of an input [n] that become rows; the last one, the root, is among them."""
        return token_ids

    @abstractmethod
    def committed_inputs(
        self, token_ids: torch.Tensor, inputs: Sequence[DraftInput]
    ) -> torch.Tensor:
        """Inputs [N, d] of the rows of `inputs`, whose tokens [N] were read one after another."""

    @abstractmethod
    def node_inputs(self, token_ids: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """Inputs [N, d] of tree nodes, from their tokens [N] and their parents' features [N, f]."""

    @abstractmethod
    def forward(self, inputs: torch.Tensor, step: PackedStep) -> torch.Tensor:
        """Features [N, f]."""

    @abstractmethod
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """[F, V] of the token after each row, from features [F, f]."""
