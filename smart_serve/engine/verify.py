"""The target's forward over a step's rows, and what it draws after each that matters."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.to_device import to_device
from smart_serve.engine.drafted import Drafted
from smart_serve.engine.draw_apart import draw_or_tell_whose_fault
from smart_serve.engine.forward import Forward
from smart_serve.engine.packing import image_rows, step_rows
from smart_serve.engine.sampler import Drawn
from smart_serve.engine.scheduler import StepWork
from smart_serve.models.target import Hidden, TargetModel


@dataclass(frozen=True, slots=True)
class Verified:
    """What the target said of a step's rows."""

    hidden: Hidden
    first_rows: NDArray[np.int64]  # [num_sequences + 1]
    slots: torch.Tensor  # [N] of the cache, where the rows wrote
    drawn: Drawn  # all rows of decoding sequences, then one per finished prefill
    prompt_is_finite: NDArray[np.bool_]  # of each row of the prefill chunks
    elapsed_ms: float


def try_to_verify(
    model: TargetModel, forward: Forward, work: StepWork, drafted: Drafted
) -> Verified | None:
    """None: out of memory. No row is committed then, so that the same may be done again (by the
    caller, for within the `except` the traceback still holds tensors)."""
    try:
        return _verify(model, forward, work, drafted)
    except torch.OutOfMemoryError:
        return None


def _verify(model: TargetModel, forward: Forward, work: StepWork, drafted: Drafted) -> Verified:
    clock = time.perf_counter()
    num_tree_rows = len(work.decodes) + drafted.forest.num_nodes
    images = image_rows(work, num_tree_rows)
    step, hidden = forward.run(step_rows(work, drafted.forest), images)
    finished = [(i, chunk.sequence) for i, chunk in enumerate(work.prefills) if chunk.is_last]
    ends = [int(step.first_rows[len(work.decodes) + i + 1]) - 1 for i, _ in finished]
    wanted = hidden.last[:num_tree_rows]
    if ends:
        wanted = torch.cat((wanted, hidden.last[to_device(np.asarray(ends), wanted.device)]))
    # Prompt rows, at once: what is not finite must be found before others get its blocks.
    finite = _finite_rows(hidden.last[num_tree_rows:]) if work.prefills else None
    sequences = [*work.decodes, *(sequence for _, sequence in finished)]
    drawn = draw_or_tell_whose_fault(
        model.logits(wanted),
        sequences,
        drafted.forest,
        drafted.laws,
        wants_roots=drafted.policy == "selector",
    )
    return Verified(
        hidden,
        step.first_rows,
        step.attention.slots,
        drawn,
        np.empty(0, np.bool_) if finite is None else finite.cpu().numpy(),
        elapsed_ms=1e3 * (time.perf_counter() - clock),
    )


def _finite_rows(hidden: torch.Tensor) -> torch.Tensor:
    """[N] of [N, h], on its device. A sum is finite only if all that is added up is."""
    return torch.isfinite(hidden.sum(dim=-1, dtype=torch.float32))
