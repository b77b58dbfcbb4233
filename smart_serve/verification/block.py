"""Block verification of one path: the tokens are accepted together, from the end.

    w_0 = 1, w_i = min(1, w_{i−1} p(x_i) / q(x_i));  S_i = Σ_v (w_i p(v | x_1..i) − q(v | x_1..i))+
    h_i = S_i / (S_i + 1 − w_i) for i < L, h_L = w_L;  τ = the last i with u_i ≤ h_i, else 0
    bonus ~ norm((w_τ p − q)+), or p at the end

Sun and others, "Block Verification Accelerates Speculative Decoding", arXiv 2403.10444, algorithm
2. E[τ] = Σ_i E[w_i], the most that any lossless rule for one path can reach.
"""

from __future__ import annotations

import torch

from smart_serve.verification.chooser import Chooser
from smart_serve.verification.descent import normalised
from smart_serve.verification.sampled_trees import SampledTrees, Verdict


def block(trees: SampledTrees, chooser: Chooser) -> Verdict:
    """The trees must be chains."""
    row = last = trees.roots
    weight = last_weight = torch.ones_like(row, dtype=torch.float64)
    for number, width in enumerate(trees.widths[:-1], start=1):
        assert width == 1, "block verification is for chains"
        child = trees.children[row, 0]
        is_node = child >= 0
        child = torch.where(is_node, child, row)
        at = (row, trees.token_ids[child].clamp(min=0))
        p, q = trees.p_target[at], trees.p_draft[at]
        grown = (weight * p / torch.where(q > 0, q, 1.0)).clamp(max=1.0)
        row, weight = child, torch.where(is_node, grown, weight)
        surplus = _surplus(trees, row, weight).sum(dim=1)
        slack = surplus + 1.0 - weight
        # No slack: the drafter is right from here on, and a later token is accepted for certain.
        accept = torch.where(slack > 0, surplus / torch.where(slack > 0, slack, 1.0), 0.0)
        accept = torch.where(trees.children[row, 0] < 0, weight, accept)
        is_accepted = chooser.bernoulli(torch.where(is_node, accept, 0.0), number)
        last = torch.where(is_accepted, row, last)
        last_weight = torch.where(is_accepted, weight, last_weight)
    p_target = trees.p_target[last]
    if len(trees.widths) == 1:
        return Verdict(last, chooser.categorical(p_target, 0))
    rest = normalised(_surplus(trees, last, last_weight), otherwise=p_target)
    is_end = (trees.children[last, :1] < 0).expand_as(rest)
    return Verdict(last, chooser.categorical(torch.where(is_end, p_target, rest), 0))


def _surplus(trees: SampledTrees, row: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(w p − q)+ after each row. [B, V]"""
    return (weight.unsqueeze(1) * trees.p_target[row] - trees.p_draft[row]).clamp(min=0)
