"""Rules that go down from the root: at each node one token is chosen, by the target's distribution
in law, and the walk goes on for as long as a child has that token.

As every token alone follows p_target given what came before, so does the text; rules differ in how
often the token is one that was drafted.
"""

from __future__ import annotations

from typing import Protocol

import torch

from smart_serve.verification.chooser import DECISIONS_PER_NODE, Chooser
from smart_serve.verification.sampled_trees import SampledTrees, Verdict


class TokenRule(Protocol):
    def __call__(
        self,
        p_target: torch.Tensor,
        p_draft: torch.Tensor,
        draws: torch.Tensor,
        with_replacement: bool,
        chooser: Chooser,
        number: int,
    ) -> torch.Tensor:
        """A token [B] of law `p_target` [B, V], given K ≥ 1 `draws` [B, K] by `p_draft` (-1: none).
        Its own decision has this number, and draw k's the one of `number` + 1 + k."""
        ...


def descend(choose: TokenRule, trees: SampledTrees, chooser: Chooser) -> Verdict:
    """All trees go down together, one level at a time."""
    row, bonus = trees.roots, torch.full_like(trees.roots, -1)
    is_done = torch.zeros_like(row, dtype=torch.bool)
    for depth, width in enumerate(trees.widths):
        assert width < DECISIONS_PER_NODE
        children = trees.children[row, :width]
        # A missing child's token is a root's: -1, which nobody chooses.
        draws = trees.token_ids[torch.where(children < 0, trees.roots[:1], children)]
        p_target, p_draft = trees.p_target[row], trees.p_draft[row]
        number = depth * DECISIONS_PER_NODE
        if width:
            token = choose(p_target, p_draft, draws, trees.draws.with_replacement, chooser, number)
        else:
            token = chooser.categorical(p_target, number)
        is_hit = draws == token.unsqueeze(1)
        child = torch.where(is_hit, children, -1).amax(dim=1) if width else torch.full_like(row, -1)
        bonus = torch.where(is_done, bonus, token)
        is_done = is_done | (child < 0)
        row = torch.where(is_done, row, child)
    return Verdict(row, bonus)


def accept_probs(
    p_target: torch.Tensor, p_draft: torch.Tensor, draws: torch.Tensor
) -> torch.Tensor:
    """min(1, p/q) of the drawn tokens [B]; 0 where nothing was drawn. Arguments [B, V], [B, V]."""
    column = draws.clamp(min=0).unsqueeze(1)
    p, q = p_target.gather(1, column).squeeze(1), p_draft.gather(1, column).squeeze(1)
    # What was drawn has q > 0, unless the row is one whose result nobody reads.
    probs = torch.where(p < q, p / torch.where(q > 0, q, 1.0), 1.0)
    return torch.where(draws < 0, 0.0, probs)


def residual(p_target: torch.Tensor, p_draft: torch.Tensor) -> torch.Tensor:
    """norm((p − q)+), the law after a rejection; p where nothing is left, which is then never
    needed. [B, V]"""
    return normalised((p_target - p_draft).clamp(min=0), otherwise=p_target)


def normalised(weights: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """Rows [B, V] that add up to 1; those without any weight are replaced."""
    total = weights.sum(dim=1, keepdim=True)
    return torch.where(total > 0, weights / torch.where(total > 0, total, 1.0), otherwise)


def without(p_draft: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The law of the next draw without replacement, after `draws` [B] (-1: none)."""
    column = draws.clamp(min=0).unsqueeze(1)
    rest = normalised(p_draft.scatter(1, column, 0.0), otherwise=p_draft)
    return torch.where(draws.unsqueeze(1) < 0, p_draft, rest)
