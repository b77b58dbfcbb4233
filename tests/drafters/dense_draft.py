"""A small random feature drafter, and the same network without cache, trees or batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from small_models import IMAGE_TOKEN, VOCAB, small_text_config
from torch import nn

from smart_serve.drafters.feature_drafter import FeatureDrafter
from smart_serve.drafters.feature_network import FeatureDraftNetwork
from smart_serve.drafters.protocol import DraftInput
from smart_serve.models.attention import ATTENTION

HIDDEN = 32


class Dense:
    """The same network in transformers' own eager attention, without cache or trees."""

    def __init__(self, drafter: FeatureDrafter) -> None:
        config = small_text_config()
        config._attn_implementation = "eager"
        self.network = FeatureDraftNetwork(config).eval()
        self.network.load_state_dict(drafter._network.state_dict())
        self.head = drafter._head

    def log_probs(self, history: History, path: list[int]) -> torch.Tensor:
        """[V] after the root and `path`: predicted features stand in for those not yet known."""
        tokens, vectors = list(history.tokens), history.rows
        for token in [*path, None]:
            features = self._forward(tokens, vectors)
            if token is None:
                return torch.log_softmax(self.head(features[-1]).float(), dim=-1)
            tokens.append(token)
            vectors = torch.cat((vectors, features[-1:]))
        raise AssertionError

    def _forward(self, tokens: list[int], vectors: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor(tokens)
        fused = self.network.fuse(self.network.embed_tokens(ids), vectors)
        fused = torch.where((ids == IMAGE_TOKEN).unsqueeze(1), vectors, fused)
        size = len(tokens)
        causal = torch.full((size, size), -torch.inf).triu(1)[None, None]
        return self.network(fused[None], torch.arange(size)[None], attention_mask=causal)[0]


@dataclass
class History:
    """What one sequence has committed: x_{t+1} and the vectors beside them."""

    tokens: list[int] = field(default_factory=list)
    rows: torch.Tensor = field(default_factory=lambda: torch.zeros(0, HIDDEN))

    def extend(self, rng: np.random.Generator, count: int, pictures: bool = False) -> DraftInput:
        start = len(self.tokens)
        new = rng.integers(0, IMAGE_TOKEN, count)
        if pictures:
            new[1:5] = IMAGE_TOKEN
        vectors = torch.from_numpy(rng.normal(size=(count, HIDDEN))).float()
        self.tokens += new.tolist()
        self.rows = torch.cat((self.rows, vectors))
        return DraftInput(0, start, new, vectors)


def make_drafter(num_blocks: int = 200) -> FeatureDrafter:
    config = small_text_config()
    config._attn_implementation = ATTENTION
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = FeatureDraftNetwork(config).eval()
        for weight in network.parameters():
            nn.init.normal_(weight, std=0.12)
        head = nn.Linear(HIDDEN, VOCAB, bias=False)
        nn.init.normal_(head.weight, std=0.12)
    return FeatureDrafter(
        network, head, image_token_id=IMAGE_TOKEN, num_blocks=num_blocks, block_tokens=4
    )
