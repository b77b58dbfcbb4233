"""Speculative sampling of the first draft token; the others only serve when the bonus meets them.

    accept x_1 if u ≤ p(x_1) / q(x_1); else y ~ norm((p − q)+)

Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", arXiv
2211.17192; Chen and others, arXiv 2302.01318. P(accepted) = Σ min(p, q), and on a tree also
Σ (p − q)+ (1 − (1 − q)^(K−1)) for draws with replacement.
"""

from __future__ import annotations

import torch

from smart_serve.verification.chooser import Chooser
from smart_serve.verification.descent import accept_probs, residual


def naive(
    p_target: torch.Tensor,
    p_draft: torch.Tensor,
    draws: torch.Tensor,
    with_replacement: bool,
    chooser: Chooser,
    number: int,
) -> torch.Tensor:
    """See `TokenRule`; only the first draw must be of law `p_draft`."""
    first = draws[:, 0]
    is_accepted = chooser.bernoulli(accept_probs(p_target, p_draft, first), number + 1)
    rest = torch.where(first.unsqueeze(1) < 0, p_target, residual(p_target, p_draft))
    return torch.where(is_accepted, first, chooser.categorical(rest, number))
