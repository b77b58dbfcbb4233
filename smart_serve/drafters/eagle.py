"""EAGLE-1/2 drafters (arXiv 2401.15077, 2406.16858) and MSD (arXiv 2505.14260)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from smart_serve.drafters.feature_network import FeatureDraftNetwork, is_mrope
from smart_serve.drafters.network import DraftNetwork
from smart_serve.drafters.protocol import DraftInput
from smart_serve.models.decoder import DecoderLayer
from smart_serve.models.rotary import RotaryEmbedding
from smart_serve.models.target import kv_shape
from smart_serve.paging.rows import PackedStep


class Eagle(DraftNetwork):
    """Predicts the target's next last hidden state; the target's own head reads it.

    Over a target with pictures it is MSD: at image positions the projected visual embedding is the
    layer's input, past the token's embedding, the hidden state and fc.
    """

    vectors = "hidden"

    def __init__(
        self, network: FeatureDraftNetwork, head: nn.Linear, image_token_id: int | None
    ) -> None:
        self.module = network
        self._layers = [DecoderLayer.of(layer) for layer in network.layers]
        self._rotary = RotaryEmbedding(network.rotary_emb)
        self.head = head
        self._image_token_id = image_token_id
        self.kind = "eagle" if image_token_id is None else "msd"
        self.vector_size = network.config.hidden_size
        self.has_mrope = is_mrope(network.config)
        self.kv_shape = kv_shape(network.config)
        self.num_embeddings = network.embed_tokens.num_embeddings

    def accepts(self, item: DraftInput) -> bool:
        # Image tokens are never embedded: a checkpoint of the text model need not know them.
        text = item.token_ids[item.token_ids != self._image_token_id]
        return item.vectors is not None and self.knows(text)

    @property
    def weight(self) -> torch.Tensor:
        return self.head.weight

    @property
    def input_size(self) -> int:
        return self.module.fc.out_features

    @property
    def body_weights(self) -> int:
        return self.module.fc.weight.numel() + sum(layer.num_weights for layer in self._layers)

    @property
    def head_weights(self) -> int:
        return self.head.weight.numel()

    def committed_inputs(
        self, token_ids: torch.Tensor, inputs: Sequence[DraftInput]
    ) -> torch.Tensor:
        vectors = torch.cat([item.vectors for item in inputs if item.vectors is not None])
        vectors = vectors.to(self.weight)
        if self._image_token_id is None:
            return self.node_inputs(token_ids, vectors)
        is_image = token_ids == self._image_token_id
        fused = self.node_inputs(token_ids.masked_fill(is_image, 0), vectors)
        return torch.where(is_image.unsqueeze(1), vectors, fused)

    def node_inputs(self, token_ids: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        return self.module.fuse(self.module.embed_tokens(token_ids), parents)

    def forward(self, inputs: torch.Tensor, step: PackedStep) -> torch.Tensor:
        rotation = self._rotary(step.positions, inputs.dtype)
        hidden = inputs
        for layer in self._layers:
            hidden = layer(hidden, rotation, step.attention)
        return hidden

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(features)
        return scores[:, : self.num_embeddings]
