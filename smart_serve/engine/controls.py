"""Each request's sampling parameters as columns, one entry per logits row."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.to_device import to_device
from smart_serve.engine.sequence import Sequence


class Controls(NamedTuple):
    """In the order that `kernels.sample` takes them."""

    temperatures: torch.Tensor  # [R] float64
    top_ps: torch.Tensor  # [R] float64
    top_ks: torch.Tensor  # [R] int64
    min_ps: torch.Tensor  # [R] float64

    @staticmethod
    def of(sequences: Seq[Sequence], counts: NDArray[np.int64], device: torch.device) -> Controls:
        """`counts[i]` rows in a row belong to `sequences[i]`."""
        params = [sequence.request.sampling for sequence in sequences]
        real = np.asarray([(p.temperature, p.top_p, p.min_p) for p in params], np.float64)
        temperatures, top_ps, min_ps = to_device(np.repeat(real.T, counts, 1), device)
        top_ks = np.repeat(np.asarray([p.top_k for p in params], np.int64), counts)
        return Controls(temperatures, top_ps, to_device(top_ks, device), min_ps)
