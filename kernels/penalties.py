"""Penalties on the logits of tokens that the context already holds.

    l_v ← l_v / r  where l_v > 0, else l_v · r        v in the prompt or the answer
    l_v ← l_v − f · count_v − a · [count_v > 0]       count_v: times that the answer holds v

r is the repetition penalty (Keskar and others, "CTRL", arXiv 1909.05858, section 4.1), f and a are
the frequency and presence penalties of the OpenAI API. Order and ranges are vLLM's.
"""

from __future__ import annotations

import torch


def penalise(
    logits: torch.Tensor,
    is_in_context: torch.Tensor,
    answer_counts: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> torch.Tensor:
    """All [R, V] but the penalties, [R]; `is_in_context` is boolean, the others float."""
    repetition, frequency, presence = (p.unsqueeze(1) for p in (repetition, frequency, presence))
    scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(is_in_context, scaled, logits)
    return logits - frequency * answer_counts - presence * (answer_counts > 0)
