"""A whole small language model as the drafter (arXiv 2211.17192)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from smart_serve.drafters.network import DraftNetwork
from smart_serve.drafters.protocol import DraftInput
from smart_serve.drafters.text_only import without_images
from smart_serve.models.target import TargetModel
from smart_serve.paging.rows import Ints, PackedStep


class DraftModel(DraftNetwork):
    """Any causal model of a supported family with the target's vocabulary.

    A model of text reads a multimodal target's sequence without its image tokens, the positions
    closed up: "On Speculative Decoding for Multimodal LLMs" (arXiv 2404.08856) found such drafts
    nearly as good as those of a drafter that sees the picture. With `sees_images` the model takes
    the target's own picture embeddings, so it must be of the same width.
    """

    kind = "draft_model"

    def __init__(
        self,
        model: TargetModel,
        target_vocab_size: int,
        image_token_id: int | None,
        *,
        sees_images: bool,
    ) -> None:
        self.model = model
        self.kv_shape = model.kv_shape
        self.num_embeddings = model.vocab_size
        self._target_vocab_size = target_vocab_size
        self.vectors = "images" if sees_images else "none"
        self.vector_size = model.hidden_size if sees_images else None
        self.has_mrope = model.has_mrope and sees_images
        self._image_token_id = image_token_id
        self._weight = model.embed(torch.zeros(0, dtype=torch.int64, device=model.device))

    @property
    def weight(self) -> torch.Tensor:
        return self._weight

    @property
    def input_size(self) -> int:
        return self.model.hidden_size

    @property
    def body_weights(self) -> int:
        return self.model.body_weights

    @property
    def head_weights(self) -> int:
        return self.model.head_weights

    def accepts(self, item: DraftInput) -> bool:
        count = 0 if item.vectors is None else len(item.vectors)
        images = int((item.token_ids == self._image_token_id).sum())
        return count <= images and self.knows(self.read(item.token_ids))

    def read(self, token_ids: Ints) -> Ints:
        if self.vectors == "images":
            return token_ids
        return without_images(token_ids, self._image_token_id)

    def committed_inputs(
        self, token_ids: torch.Tensor, inputs: Sequence[DraftInput]
    ) -> torch.Tensor:
        embeds = self.model.embed(token_ids)
        if self.vectors != "images":
            return embeds
        first = 0
        for item in inputs:
            if item.vectors is not None:
                # What follows the pictures' own tokens are some that the target wrote itself.
                places = np.flatnonzero(item.token_ids == self._image_token_id)
                rows = torch.from_numpy(first + places[: len(item.vectors)])
                embeds[rows.to(embeds.device)] = item.vectors.to(embeds)
            first += len(item.token_ids)
        return embeds

    def node_inputs(self, token_ids: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        return self.model.embed(token_ids)

    def forward(self, inputs: torch.Tensor, step: PackedStep) -> torch.Tensor:
        return self.model.forward(inputs, step.positions, step.attention).last

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.logits(features)[:, : self._target_vocab_size]
