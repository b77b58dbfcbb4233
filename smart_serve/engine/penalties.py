"""Biases and penalties of each request, applied to the target's logits before anything else."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from kernels.penalties import penalise
from smart_serve.engine.packing import ancestors, row_counts
from smart_serve.engine.sequence import Sequence
from smart_serve.paging.rows import Ints
from smart_serve.speculation.tree import Forest


def penalised(logits: torch.Tensor, sequences: Seq[Sequence], forest: Forest) -> torch.Tensor:
    """Logits [R, V] with every row's own bias and penalties, in float32 if there are any.

    The context of a draft node's row is the request's tokens and the node's path, so what a row
    says is what plain decoding would say there.
    """
    wanting = [i for i, s in enumerate(sequences) if s.request.sampling.changes_logits]
    if not wanting:
        return logits
    ends = np.cumsum(row_counts(len(sequences), forest))
    starts = ends - row_counts(len(sequences), forest)
    shaped = logits.float()
    shaped = shaped.clone() if shaped is logits else shaped
    for i in wanting:
        path_rows, path_tokens = _paths(forest, i)
        rows = slice(int(starts[i]), int(ends[i]))
        shaped[rows] = _one(shaped[rows], sequences[i], path_rows, path_tokens)
    return shaped


def _one(
    logits: torch.Tensor, sequence: Sequence, path_rows: Ints, path_tokens: Ints
) -> torch.Tensor:
    """One request's rows [r, V]; `path_tokens[j]` is a draft token before row `path_rows[j]`."""
    sampling, device = sequence.request.sampling, logits.device
    num_prompt = sequence.num_prompt - sequence.request.num_resumed
    tokens = torch.tensor(sequence.tokens, device=device)
    ones = torch.ones((), device=device)
    counts = torch.zeros_like(logits)
    counts[0].index_put_((tokens[num_prompt:],), ones, accumulate=True)
    counts[1:] = counts[0]
    path = (torch.from_numpy(path_rows).to(device), torch.from_numpy(path_tokens).to(device))
    counts.index_put_(path, ones, accumulate=True)
    is_in_context = counts > 0
    is_in_context[:, tokens[:num_prompt]] = True
    if sampling.logit_bias:
        biased = torch.tensor(list(sampling.logit_bias), device=device)
        logits[:, biased] += torch.tensor(list(sampling.logit_bias.values()), device=device)
    penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    columns = torch.tensor(penalties, device=device).unsqueeze(1).expand(3, len(logits))
    return penalise(logits, is_in_context, counts, *columns)


def _paths(forest: Forest, index: int) -> tuple[Ints, Ints]:
    """(row, token) of every draft node on the way to every row of tree `index`, itself included;
    nothing for a sequence without a tree."""
    if index >= forest.num_trees:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    begin, end = int(forest.offsets[index]), int(forest.offsets[index + 1])
    rows, nodes = np.nonzero(ancestors(forest.parents[begin:end])[:, 1:])
    return rows, forest.token_ids[begin:end][nodes]
