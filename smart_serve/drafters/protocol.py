"""What the engine asks of a drafter, in process or at the far end of a socket."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from smart_serve.errors import ServerError
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.growth import MAX_PRUNED, Growth
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import Forest

VectorKind = Literal["none", "images", "hidden", "layers"]
"""What a drafter wants beside the tokens; see `DraftInput.vectors`."""


class DrafterUnavailable(ServerError):
    """The drafter is dead, late or confused: the step goes on without drafts."""

    code = "drafter_unavailable"


class DraftInput(msgspec.Struct, frozen=True):
    """What one sequence committed since the drafter was last asked.

    The last token is the root: emitted, but not yet in the target's KV cache. Which token stands
    at draft position t, and what is beside it, follows from `DrafterInfo.vectors`:

    - `none`: token x_t, and nothing.
    - `images`: token x_t; `vectors` holds the projected visual embeddings [i, h] of this input's
      i image tokens, in order, or is None when there are none.
    - `hidden`: token x_{t+1} and h_t, the target's last hidden state after its final norm; where
      x_{t+1} is an image token, its projected visual embedding in h_t's place. [n, h]
    - `layers`: as `hidden`, but h_t is the hidden states that enter `DrafterInfo.capture_layers`,
      side by side, and x_{t+1} may be an image token like any other. [n, 3h]
    """

    sequence_id: int
    start: int
    """First draft position of this input; all before it were sent earlier. 0 opens the sequence."""
    token_ids: NDArray[np.int64]  # [n] at draft positions start .. start + n - 1
    vectors: torch.Tensor | None
    positions: NDArray[np.int64] | None = None
    """[3, n] where these tokens stand on the axes of M-RoPE; None for targets without it. The
    last one, the root, is text: its nodes go on from there by their depth, on all axes."""
    trace_parent: str | None = None
    """Of an opened sequence, if its request is traced (`GenerateRequest.trace_parent`)."""


@dataclass(frozen=True, slots=True)
class DraftBatch:
    """One step's request to a drafter."""

    inputs: tuple[DraftInput, ...]
    growth: GrowthPlan


@dataclass(frozen=True, slots=True)
class Proposal:
    """The answer: a tree for each input, in order."""

    growth: Growth
    unknown: tuple[int, ...] = ()
    """Indices of inputs whose sequence the drafter does not hold up to `start`."""
    layer_ms: tuple[float, ...] = ()
    """Measured time of each drafting layer; the first includes catching up."""
    layer_rows: tuple[int, ...] = ()

    def problem(self, num_inputs: int, vocab_size: int, plan: GrowthPlan) -> str | None:
        """Why this answer must not be used, or None; see `Forest.problem`."""
        forest = self.growth.forest
        if (miscounted := _count_problem(forest, num_inputs)) is not None:
            return miscounted
        if any(not 0 <= index < num_inputs for index in self.unknown):
            return "an unknown sequence that was not asked for"
        if len(self.layer_ms) != len(self.layer_rows) or min(self.layer_rows, default=1) < 1:
            return "times that do not belong to rows"
        if not all(0.0 <= ms < math.inf for ms in self.layer_ms):
            return "times that are none"
        problem = forest.problem(vocab_size, plan.max_nodes) or self.growth.problem(plan.max_depth)
        considered, laws = self.growth.considered, self.growth.laws
        if considered is not None:
            problem = problem or considered.problem(
                vocab_size, plan.max_nodes + num_inputs * MAX_PRUNED
            )
            problem = problem or _count_problem(considered, num_inputs)
        return problem if laws is None else problem or laws.problem(forest, vocab_size)


def _count_problem(forest: Forest, num_inputs: int) -> str | None:
    if forest.num_trees == num_inputs:
        return None
    return f"{forest.num_trees} trees for {num_inputs} sequences"


@dataclass(frozen=True, slots=True)
class DrafterInfo:
    """What the target must know of a drafter before the first step."""

    kind: str
    vectors: VectorKind
    vector_size: int | None
    """Width of the vectors; None: it wants none."""
    capture_layers: tuple[int, ...]
    """Target layers whose inputs make up a vector (`layers` only), in order."""
    layer_cost: Curve
    """Milliseconds of one drafting layer by rows, measured where the drafter runs."""

    @property
    def wants_vector_per_token(self) -> bool:
        return self.vectors in ("hidden", "layers")


Outcome = Proposal | DrafterUnavailable


class Drafter(Protocol):
    """Grows draft trees. One owner calls it, from one thread."""

    @property
    def info(self) -> DrafterInfo: ...

    def propose(self, batch: DraftBatch) -> Proposal:
        """Catch up with the committed tokens and grow the trees of this step.

        Raises `DrafterUnavailable` when no answer can be had.
        """
        ...

    def close(self, sequence_ids: Sequence[int]) -> None:
        """Forget sequences."""
        ...


@runtime_checkable
class DistantDrafter(Drafter, Protocol):
    """One that drafts while its target does something else."""

    def ask(self, batch: DraftBatch) -> Callable[[], Proposal]:
        """Sends the question; what is returned waits for its answer, and is called before the next
        question or not at all. Both raise `DrafterUnavailable`."""
        ...


class SharedDrafter(Drafter, Protocol):
    """One that several targets ask."""

    def propose_together(self, batches: Sequence[DraftBatch]) -> Iterator[tuple[int, Outcome]]:
        """Answers to questions of different targets, in one pass a layer for all of them: the
        question's number with its outcome, as soon as it is known.

        Each batch's trees are grown by its own plan, and what is wrong with one batch does not
        show in the others' answers.
        """
        ...


def one_by_one(drafter: Drafter, batches: Sequence[DraftBatch]) -> Iterator[tuple[int, Outcome]]:
    """`propose_together` of a drafter whose passes are none the cheaper for being joint."""
    for number, batch in enumerate(batches):
        try:
            yield number, drafter.propose(batch)
        except DrafterUnavailable as error:
            yield number, error
