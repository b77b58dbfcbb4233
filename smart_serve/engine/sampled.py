"""Trees that were drawn, verified by the rules that read what they were drawn from."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from kernels.sample import target_probs
from smart_serve.engine.controls import Controls
from smart_serve.engine.sequence import Sequence
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.tree import Forest
from smart_serve.verification.chooser import CounterChooser
from smart_serve.verification.rules import SAMPLED_RULES
from smart_serve.verification.sampled_trees import Draws, SampledTrees


def verified_by_laws(
    tokens: torch.Tensor,
    logits: torch.Tensor,
    sequences: Seq[Sequence],
    forest: Forest,
    laws: DraftLaws,
) -> torch.Tensor:
    """`tokens` [R] drawn by sample-and-match, with those of other rules' accepted paths in place.

    `logits` [R, V] are finite and have their penalties; rows as in `sampler.draw`.
    """
    by_rule: dict[str, list[int]] = {}
    for place, (sequence, size) in enumerate(zip(sequences, forest.sizes.tolist(), strict=False)):
        sampling = sequence.request.sampling
        if size and sampling.temperature > 0 and sampling.verification != "match":
            by_rule.setdefault(sampling.verification, []).append(place)
    for rule, places in by_rule.items():
        own = [sequences[place] for place in places]
        rows = _rows_of(forest, places).to(logits.device)
        trees = _trees(logits, own, rows, forest.only(places), laws.only(places, forest.num_trees))
        chooser = CounterChooser(
            np.asarray([sequence.seed for sequence in own], np.int64),
            np.asarray([len(sequence.tokens) for sequence in own], np.int64),
            logits.device,
        )
        drawn = SAMPLED_RULES[rule](trees, chooser).drawn(trees)
        tokens = tokens.index_copy(0, rows, torch.where(drawn < 0, tokens[rows], drawn))
    return tokens


def _rows_of(forest: Forest, places: list[int]) -> torch.Tensor:
    """Logits rows of these trees, roots included."""
    first = forest.offsets[places] + np.asarray(places)
    counts = forest.sizes[places] + 1
    inner = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return torch.from_numpy(np.repeat(first, counts) + inner)


def _trees(
    logits: torch.Tensor,
    sequences: list[Sequence],
    rows: torch.Tensor,
    forest: Forest,
    laws: DraftLaws,
) -> SampledTrees:
    device = logits.device
    own = logits[rows]
    p_target = target_probs(own, *Controls.of(sequences, forest.sizes + 1, device))
    p_target = p_target / p_target.sum(dim=1, keepdim=True)
    roots = forest.offsets[:-1] + np.arange(forest.num_trees)
    at, ids, probs = (
        torch.from_numpy(array).to(device)
        for array in (roots[laws.trees] + laws.rows, laws.token_ids, laws.probs)
    )
    p_draft = torch.zeros_like(p_target)
    p_draft[at] = p_draft[at].scatter_add(1, ids, probs)
    return SampledTrees.of(
        Draws(forest, laws.nodes(forest), laws.with_replacement), p_target, p_draft
    )
