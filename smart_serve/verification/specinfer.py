"""Recursive rejection sampling over a node's draws.

    for x in draws: accept x if u ≤ p(x) / q(x); else p ← norm((p − q)+)
                    and, for draws without replacement, q(x) ← 0, q ← norm(q)
    none accepted: y ~ p

Miao and others, "SpecInfer", arXiv 2305.09781, section 4.3 (multi-step speculative sampling);
without replacement: Jeon and others, "Recursive Speculative Decoding", arXiv 2402.14160. SpecInfer
takes the draws in a random order; independent draws are in one already, and draws without
replacement must be taken as they were made.
"""

from __future__ import annotations

import torch

from smart_serve.verification.chooser import Chooser
from smart_serve.verification.descent import accept_probs, residual, without


def specinfer(
    p_target: torch.Tensor,
    p_draft: torch.Tensor,
    draws: torch.Tensor,
    with_replacement: bool,
    chooser: Chooser,
    number: int,
) -> torch.Tensor:
    """See `TokenRule`."""
    token = torch.full((len(draws),), -1, device=draws.device)
    for own, drawn in enumerate(draws.unbind(dim=1), start=number + 1):
        is_accepted = chooser.bernoulli(accept_probs(p_target, p_draft, drawn), own)
        token = torch.where(is_accepted & (token < 0), drawn, token)
        is_draw = (drawn >= 0).unsqueeze(1)
        p_target = torch.where(is_draw, residual(p_target, p_draft), p_target)
        if not with_replacement:
            p_draft = without(p_draft, drawn)
    return torch.where(token < 0, chooser.categorical(p_target, number), token)
