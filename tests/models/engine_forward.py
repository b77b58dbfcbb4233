"""One prompt through a target's packed forward, without an engine."""

from __future__ import annotations

import numpy as np
import torch

from smart_serve.models.target import TargetModel
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.pack import pack_rows
from smart_serve.paging.rows import causal_rows


@torch.inference_mode()
def plain_logits(model: TargetModel, token_ids: torch.Tensor) -> torch.Tensor:
    """[n, V] of text tokens [n]."""
    n = len(token_ids)
    cache = KvCache(model.kv_shape, 1 + n, 1, model.dtype, model.device)
    rows = causal_rows(
        blocks=[range(1, n + 1)],
        num_committed=np.array([0]),
        lengths=np.array([n]),
        token_ids=token_ids.numpy(),
    )
    embeds = model.embed(token_ids)
    step = pack_rows([rows], cache, embeds)
    return model.logits(model.forward(embeds, step.positions, step.attention).last)
