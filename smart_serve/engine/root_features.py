"""How alike target and drafter were at the root of each tree, for the selector of later trees."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from kernels.sample import target_probs
from smart_serve.engine.controls import Controls
from smart_serve.engine.sequence import Sequence
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.tree import FloatArray, Forest

FLOOR = 1e-6
"""Of a probability under a logarithm: what the drafter rules out makes no divergence infinite."""


def root_features(
    logits: torch.Tensor, sequences: Seq[Sequence], forest: Forest, laws: DraftLaws
) -> FloatArray:
    """H(p), H(q), KL(p, q), KL(q, p) in nats and Σ|p − q| at every tree's root, NaN for a tree that
    nothing was drawn for; logits [R, V] with penalties. [B, 5]"""
    found = np.full((forest.num_trees, 5), np.nan)
    at_root = np.flatnonzero(laws.rows == 0)
    trees = laws.trees[at_root]
    if len(trees) == 0:
        return found
    own = [sequences[tree] for tree in trees]
    device = logits.device
    rows = torch.from_numpy(forest.offsets[trees] + trees).to(device)
    p = target_probs(logits[rows], *Controls.of(own, np.ones(len(own), np.int64), device))
    p = p / p.sum(dim=1, keepdim=True)
    ids, probs = (torch.from_numpy(x[at_root]).to(device) for x in (laws.token_ids, laws.probs))
    q = torch.zeros_like(p).scatter_add(1, ids, probs)
    log_p, log_q = p.clamp(min=FLOOR).log(), q.clamp(min=FLOOR).log()
    parts = (-p * log_p, -q * log_q, p * (log_p - log_q), q * (log_q - log_p), (p - q).abs())
    found[trees] = torch.stack([part.sum(dim=1) for part in parts], dim=1).cpu().numpy()
    return found
