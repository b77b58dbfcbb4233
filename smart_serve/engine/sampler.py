"""The target's own token after every row that matters, by each request's sampling parameters."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.sample import keyed_uniforms, sample
from kernels.verify import Walk
from smart_serve.engine.controls import Controls
from smart_serve.engine.logprobs import NO_LOGPROBS, RowLogprobs, row_logprobs
from smart_serve.engine.packing import drawn_positions, row_counts
from smart_serve.engine.penalties import penalised
from smart_serve.engine.root_features import root_features
from smart_serve.engine.sampled import verified_by_laws
from smart_serve.engine.sequence import Sequence
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.tree import FloatArray, Forest
from smart_serve.verification.match import match


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token per logits row; a row that is not finite has none that may be used."""

    token_ids: NDArray[np.int64]  # [R]
    is_finite: NDArray[np.bool_]  # [R]
    walk: Walk  # on the device
    lengths: NDArray[np.int64]  # [B] of the walk, on the host
    paths: NDArray[np.int64]  # [B, D]
    logprobs: RowLogprobs = NO_LOGPROBS
    roots: FloatArray | None = None
    """`root_features` of the trees, where they were wanted."""
    faulty: frozenset[int] = frozenset()
    """Ids of sequences whose own tokens could not be drawn; their rows hold others."""

    def committed_rows(self, roots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Packed rows of all trees' accepted paths, tree by tree: the root, one of `roots` [B], and
        `lengths` more. The token drawn after each of them is the next one of its answer."""
        rows = np.concatenate((np.zeros_like(roots)[:, None], self.paths), axis=1) + roots[:, None]
        return rows[np.arange(rows.shape[1]) <= self.lengths[:, None]]


def draw(
    logits: torch.Tensor,
    sequences: Seq[Sequence],
    forest: Forest,
    laws: DraftLaws | None = None,
    *,
    wants_roots: bool = False,
) -> Drawn:
    """Tokens for logits [R, V]: the rows of each of the first sequences' trees (its root's first),
    then one row for each sequence that has none.

    Where a request's rule reads the `laws` that its tree was drawn from, the tokens along the
    accepted path are that rule's; the other rows' are then of no use.
    """
    # One reduction for the whole row: a sum is finite only if every logit is. In float32, for a
    # large vocabulary's logits add up to more than float16 holds.
    finite = torch.isfinite(logits.sum(dim=-1, dtype=torch.float32))
    shaped = penalised(logits, sequences, forest)
    roots = None
    if all(sequence.request.sampling.temperature == 0 for sequence in sequences):
        tokens = shaped.argmax(dim=-1)
    else:
        # A NaN row would poison nothing but itself; zeros keep the sampler's own checks quiet.
        shaped = torch.nan_to_num(shaped)
        tokens = _sample(shaped, sequences, forest)
        if laws is not None:
            tokens = verified_by_laws(tokens, shaped, sequences, forest, laws)
        if laws is not None and wants_roots:
            roots = root_features(shaped, sequences, forest, laws)
    walk = match(forest, tokens[: forest.num_trees + forest.num_nodes])
    # All that the host must know, in one copy: here the step waits for the device.
    found = (tokens, finite.to(tokens), walk.lengths, walk.paths.flatten())
    ends = np.cumsum([len(part) for part in found])[:-1]
    token_ids, is_finite, lengths, paths = np.split(torch.cat(found).cpu().numpy(), ends)
    return Drawn(
        token_ids,
        is_finite.astype(np.bool_),
        walk,
        lengths,
        paths.reshape(walk.paths.shape),
        row_logprobs(logits, tokens, sequences, forest),
        roots,
        _without_tokens(token_ids, logits.shape[1], sequences, forest),
    )


def _without_tokens(
    token_ids: NDArray[np.int64], vocab: int, sequences: Seq[Sequence], forest: Forest
) -> frozenset[int]:
    """Ids of sequences that drew what is no token: the next forward would fail for all."""
    outside = (token_ids < 0) | (token_ids >= vocab)
    if not outside.any():
        return frozenset()
    ids = np.asarray([sequence.id for sequence in sequences], np.int64)
    return frozenset(np.repeat(ids, row_counts(len(ids), forest))[outside].tolist())


def _sample(logits: torch.Tensor, sequences: Seq[Sequence], forest: Forest) -> torch.Tensor:
    counts = row_counts(len(sequences), forest)
    seeds = np.repeat(np.asarray([s.seed for s in sequences], np.int64), counts)
    uniforms = keyed_uniforms(seeds, drawn_positions(sequences, forest), logits.device)
    return sample(logits, *Controls.of(sequences, counts, logits.device), uniforms)
