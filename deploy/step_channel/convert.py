"""`DraftBatch` and `Proposal` to their messages and back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.step_channel.arrays import WireArray
from deploy.step_channel.errors import ProtocolError
from deploy.step_channel.messages import Laws, Propose, Proposed, Trees
from smart_serve.drafters.protocol import DraftBatch, DrafterInfo, DraftInput, Proposal
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.tree import Forest


def batch_to_message(number: int, batch: DraftBatch, info: DrafterInfo) -> Propose:
    """Lays the inputs end to end. Raises `ValueError` if vectors are wanted and missing."""
    inputs = batch.inputs
    parts = [] if info.vectors == "none" else [one.vectors for one in inputs]
    if info.wants_vector_per_token and any(part is None for part in parts):
        raise ValueError("this drafter needs a vector for each token")
    present = [part for part in parts if part is not None]
    tokens = [one.token_ids for one in inputs]
    axes = [one.positions for one in inputs if one.positions is not None]
    return Propose(
        number=number,
        sequence_ids=_int_column([one.sequence_id for one in inputs]),
        starts=_int_column([one.start for one in inputs]),
        counts=_int_column([len(one.token_ids) for one in inputs]),
        token_ids=WireArray.from_numpy(np.concatenate(tokens) if tokens else np.empty(0, np.int64)),
        vector_counts=_int_column([0 if part is None else len(part) for part in parts]),
        vectors=WireArray.from_tensor(torch.cat(present)) if present else None,
        growth=batch.growth,
        positions=WireArray.from_numpy(np.concatenate(axes, axis=1)) if axes else None,
        trace_parents=tuple(
            (i, one.trace_parent) for i, one in enumerate(inputs) if one.trace_parent is not None
        ),
    )


def message_to_batch(message: Propose, info: DrafterInfo, name: Callable[[int], int]) -> DraftBatch:
    """The batch, its sequences renamed by `name`. Raises `ProtocolError` if it is inconsistent."""
    # As lists: a batch is small, and each question that numpy is asked costs some microseconds.
    ids, starts = _column(message.sequence_ids).tolist(), _column(message.starts).tolist()
    counts, tokens = _column(message.counts).tolist(), _column(message.token_ids)
    if not len(ids) == len(starts) == len(counts):
        raise ProtocolError("inputs of different lengths")
    if len(set(ids)) < len(ids):
        raise ProtocolError("a sequence that is asked for twice")
    if min(counts, default=1) < 1 or sum(counts) != len(tokens):
        raise ProtocolError("counts that do not cover the tokens")
    if min(starts, default=0) < 0:
        raise ProtocolError("a start below 0")
    vectors = _vectors(message, info, counts)
    positions = _positions(message.positions, len(tokens))
    ends = itertools.accumulate(counts)
    trace_parents = dict(message.trace_parents)
    inputs = tuple(
        DraftInput(
            sequence_id=name(ids[i]),
            start=starts[i],
            token_ids=tokens[end - counts[i] : end],
            vectors=vectors[i],
            positions=None if positions is None else positions[:, end - counts[i] : end],
            trace_parent=trace_parents.get(i),
        )
        for i, end in enumerate(ends)
    )
    return DraftBatch(inputs, message.growth)


def _positions(array: WireArray | None, num_tokens: int) -> NDArray[np.int64] | None:
    if array is None:
        return None
    if array.dtype != "int64" or array.shape != (3, num_tokens):
        raise ProtocolError(f"positions that are not [3, {num_tokens}]")
    return array.to_numpy()


def _vectors(
    message: Propose, info: DrafterInfo, counts: list[int]
) -> Sequence[torch.Tensor | None]:
    """What each input brings beside its tokens."""
    nothing = [None] * len(counts)
    if info.vectors == "none":
        return nothing
    own: list[int] = _column(message.vector_counts).tolist()
    if len(own) != len(counts) or any(
        not 0 <= mine <= most for mine, most in zip(own, counts, strict=True)
    ):
        raise ProtocolError("vector counts that do not fit the inputs")
    if info.wants_vector_per_token and own != counts:
        raise ProtocolError("tokens without a vector")
    total = sum(own)
    if message.vectors is None:
        if total:
            raise ProtocolError("vectors that were counted and not sent")
        return nothing
    vectors = message.vectors.to_tensor()
    if vectors.shape != (total, info.vector_size):
        raise ProtocolError(f"vectors that are not [{total}, {info.vector_size}]")
    return [part if len(part) else None for part in vectors.split(own)]


def proposal_to_message(number: int, proposal: Proposal) -> Proposed:
    growth = proposal.growth
    return Proposed(
        number=number,
        forest=_forest_to_message(growth.forest),
        best_by_depth=tuple(tuple(map(float, row)) for row in growth.best_by_depth),
        child_mass=tuple(map(float, growth.child_mass)),
        unknown=tuple(map(int, proposal.unknown)),
        layer_ms=tuple(map(float, proposal.layer_ms)),
        layer_rows=tuple(map(int, proposal.layer_rows)),
        laws=None if growth.laws is None else _laws_to_message(growth.laws),
        considered=None if growth.considered is None else _forest_to_message(growth.considered),
    )


def message_to_proposal(message: Proposed, num_inputs: int) -> Proposal:
    """Raises `ProtocolError` unless there is a tree for each input.

    The inner structure is left to `Proposal.problem`, which the engine asks anyway.
    """
    forest = _message_to_forest(message.forest)
    if forest.num_trees != num_inputs:
        raise ProtocolError(f"{forest.num_trees} trees for {num_inputs} sequences")
    if any(not 0 <= index < num_inputs for index in message.unknown):
        raise ProtocolError("an unknown sequence that was not asked for")
    laws = None if message.laws is None else _message_to_laws(message.laws)
    growth = Growth(
        forest,
        message.best_by_depth,
        message.child_mass,
        laws=laws,
        considered=None if message.considered is None else _message_to_forest(message.considered),
    )
    return Proposal(growth, message.unknown, message.layer_ms, message.layer_rows)


def _forest_to_message(forest: Forest) -> Trees:
    return Trees(
        offsets=_int_column(forest.offsets),
        token_ids=_int_column(forest.token_ids),
        parents=_int_column(forest.parents),
        depths=_int_column(forest.depths),
        confidences=WireArray.from_numpy(np.asarray(forest.confidences, np.float64)),
        path_probs=WireArray.from_numpy(np.asarray(forest.path_probs, np.float64)),
    )


def _message_to_forest(message: Trees) -> Forest:
    return Forest(
        offsets=_column(message.offsets),
        token_ids=_column(message.token_ids),
        parents=_column(message.parents),
        depths=_column(message.depths),
        confidences=_column(message.confidences, "float64"),
        path_probs=_column(message.path_probs, "float64"),
    )


def _laws_to_message(laws: DraftLaws) -> Laws:
    return Laws(
        trees=_int_column(laws.trees),
        rows=_int_column(laws.rows),
        token_ids=_int_column(laws.token_ids),
        probs=WireArray.from_numpy(np.asarray(laws.probs, np.float64)),
        draw_trees=_int_column(laws.draw_trees),
        draw_rows=_int_column(laws.draw_rows),
        with_replacement=laws.with_replacement,
    )


def _message_to_laws(message: Laws) -> DraftLaws:
    return DraftLaws(
        trees=_column(message.trees),
        rows=_column(message.rows),
        token_ids=_column(message.token_ids, sides=2),
        probs=_column(message.probs, "float64", sides=2),
        draw_trees=_column(message.draw_trees),
        draw_rows=_column(message.draw_rows),
        with_replacement=message.with_replacement,
    )


def _int_column(values: Any) -> WireArray:
    return WireArray.from_numpy(np.asarray(values, np.int64))


def _column(array: WireArray, dtype: str = "int64", sides: int = 1) -> NDArray[Any]:
    if array.dtype != dtype or len(array.shape) != sides:
        raise ProtocolError(f"a column that is not one of {dtype}")
    return array.to_numpy()
