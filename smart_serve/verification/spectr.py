"""K-sequential selection over K independent draws.

    accept x_i if u_i ≤ p(x_i) / (ρ q(x_i));   β(ρ) = Σ min(p/ρ, q)
    none accepted: y ~ norm((p − min(p/ρ, q) · (1 − (1 − β)^K) / β)+)
    ρ in [1, K] solves 1 − (1 − β(ρ))^K = ρ β(ρ)

Sun and others, "SpecTr: Fast Speculative Decoding via Optimal Transport", arXiv 2310.15141,
algorithm 3. Any ρ from the root upwards keeps the law, so the upper end of the bisection is taken.
P(accepted by the draws) = 1 − (1 − β)^K.
"""

from __future__ import annotations

import torch

from smart_serve.verification.chooser import Chooser
from smart_serve.verification.descent import accept_probs, normalised

_HALVINGS = 30
"""[1, K] shrinks to a billionth: what that costs is acceptance, and too little to see."""


def spectr(
    p_target: torch.Tensor,
    p_draft: torch.Tensor,
    draws: torch.Tensor,
    with_replacement: bool,
    chooser: Chooser,
    number: int,
) -> torch.Tensor:
    """See `TokenRule`; the draws must be independent."""
    counts = (draws >= 0).sum(dim=1, keepdim=True).double()
    scaled = p_target / _rho(p_target, p_draft, counts)
    token = torch.full_like(draws[:, 0], -1)
    for own, drawn in enumerate(draws.unbind(dim=1), start=number + 1):
        is_accepted = chooser.bernoulli(accept_probs(scaled, p_draft, drawn), own)
        token = torch.where(is_accepted & (token < 0), drawn, token)
    overlap = torch.minimum(scaled, p_draft)
    beta = overlap.sum(dim=1, keepdim=True)
    ratio = torch.where(beta > 0, _accepted(beta, counts) / torch.where(beta > 0, beta, 1.0), 0.0)
    rest = normalised((p_target - overlap * ratio).clamp(min=0), otherwise=p_target)
    return torch.where(token < 0, chooser.categorical(rest, number), token)


def _accepted(beta: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return 1.0 - (1.0 - beta) ** counts


def _rho(p_target: torch.Tensor, p_draft: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """[B, 1]"""
    low, high = torch.ones_like(counts), counts.clamp(min=1.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beta = torch.minimum(p_target / middle, p_draft).sum(dim=1, keepdim=True)
        is_enough = _accepted(beta, counts) <= middle * beta
        low, high = torch.where(is_enough, low, middle), torch.where(is_enough, middle, high)
    return high
