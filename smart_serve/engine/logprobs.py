"""Log-probabilities of the emitted tokens and their likeliest rivals, for requests that ask."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from smart_serve.engine.packing import row_counts
from smart_serve.engine.sequence import Sequence
from smart_serve.messages import TokenLogprob
from smart_serve.speculation.tree import FloatArray, Forest


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """What the model says after the rows of the requests that ask."""

    rows: NDArray[np.int64]  # [A] increasing
    chosen: FloatArray  # [A] of the token drawn after the row
    top_ids: NDArray[np.int64]  # [A, n] best first
    top: FloatArray  # [A, n]

    def at(self, sequence: Sequence, rows: NDArray[np.int64]) -> tuple[TokenLogprob, ...]:
        """Of the tokens drawn after these rows of the sequence, if it asks."""
        wanted = sequence.request.sampling.logprobs
        if wanted is None:
            return ()
        places = np.searchsorted(self.rows, rows)
        ids, values = self.top_ids[places, :wanted], self.top[places, :wanted]
        return tuple(
            TokenLogprob(chosen, tuple(zip(*best, strict=True)))
            for chosen, *best in zip(
                self.chosen[places].tolist(), ids.tolist(), values.tolist(), strict=True
            )
        )


NO_LOGPROBS = RowLogprobs(
    np.empty(0, np.int64), np.empty(0), np.empty((0, 0), np.int64), np.empty((0, 0))
)


def row_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, sequences: Seq[Sequence], forest: Forest
) -> RowLogprobs:
    """From the model's own logits [R, V], with `tokens` [R] drawn after the rows."""
    asked = [sequence.request.sampling.logprobs for sequence in sequences]
    if all(count is None for count in asked):
        return NO_LOGPROBS
    is_asked = np.repeat([count is not None for count in asked], row_counts(len(asked), forest))
    rows = np.flatnonzero(is_asked)
    on_device = torch.from_numpy(rows).to(logits.device)
    said = torch.log_softmax(logits[on_device].float(), dim=-1)
    count = min(max(count or 0 for count in asked), logits.shape[1])
    top = said.topk(count, dim=-1)
    chosen = said.gather(1, tokens[on_device].unsqueeze(1))
    # One copy to the host; token ids are exact in float64.
    both = torch.cat((chosen.double(), top.values.double(), top.indices.double()), dim=1)
    table = both.cpu().numpy()
    best, ids = table[:, 1 : 1 + count], table[:, 1 + count :]
    return RowLogprobs(rows, table[:, 0], ids.astype(np.int64), best)
