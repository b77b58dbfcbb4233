"""A synthetic drafter: children with confidences, and what they are truly worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smart_serve.speculation.tree import FloatArray, IntArray

CONCENTRATION = 3.0
"""a + b of the Beta law of one node's best child: most tokens are easy or hard, few in between."""
RANK_SHARE = 0.5
"""Of what better children leave, the share of the next one."""


@dataclass(frozen=True, slots=True)
class Skill:
    """How good a drafter is, and how well it knows it."""

    quality: float = 0.75
    """Mean acceptance of a node's best child; EAGLE-style heads have 0.6 to 0.85."""
    spread: float = 0.12
    """Standard deviation of that mean from request to request."""
    worth: float = 1.0
    """Every child's acceptance is multiplied by it, its confidence is not. 0: a useless drafter."""
    overconfidence: float = 2.0
    """The best child's odds are this many times too high."""
    confusion: float = 0.5
    """Standard deviation of the noise on the best child's log-odds."""


@dataclass(frozen=True, slots=True)
class Children:
    """Of every frontier node, best first by confidence."""

    confidences: FloatArray  # [F, k]
    acceptance: FloatArray  # [F, k] true probability given the parent
    is_true: NDArray[np.bool_]  # [F, k] whether it is the target's next token; one at most


class SyntheticDrafter:
    """Owned by one simulation; each sequence has a quality of its own."""

    def __init__(self, skill: Skill, rng: np.random.Generator) -> None:
        self._skill = skill
        self._rng = rng
        self._qualities: FloatArray = np.empty(0)

    def resize(self, num_sequences: int) -> None:
        """Sequences join at the end and leave from there."""
        new = max(0, num_sequences - len(self._qualities))
        mean, deviation = self._skill.quality, self._skill.spread
        joined = np.clip(self._rng.normal(mean, deviation, new), 0.02, 0.98)
        self._qualities = np.concatenate([self._qualities, joined])[:num_sequences]

    def children(self, sequences: IntArray, top_k: int) -> Children:
        """`top_k` children of one node for each of `sequences` [F]."""
        rng, skill = self._rng, self._skill
        quality = self._qualities[sequences]
        best = rng.beta(CONCENTRATION * quality, CONCENTRATION * (1.0 - quality))
        best = np.clip(best, 1e-4, 1.0 - 1e-4)[:, None]
        shares = RANK_SHARE * (1.0 - RANK_SHARE) ** np.arange(top_k - 1)
        odds = best / (1.0 - best) * skill.overconfidence
        odds = odds * np.exp(rng.normal(0.0, skill.confusion, best.shape))
        claimed = odds / (1.0 + odds)
        acceptance = np.hstack([best, (1.0 - best) * shares])
        confidences = np.hstack([claimed, (1.0 - claimed) * shares])
        order = np.argsort(-confidences, axis=1, kind="stable")
        acceptance = skill.worth * np.take_along_axis(acceptance, order, 1)
        ends = np.cumsum(acceptance, axis=1)
        drawn = rng.random((len(best), 1))
        return Children(
            confidences=np.take_along_axis(confidences, order, 1),
            acceptance=acceptance,
            is_true=(drawn < ends) & (drawn >= ends - acceptance),
        )
