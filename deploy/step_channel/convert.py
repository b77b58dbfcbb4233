"""`DraftBatch` and `Proposal` to their messages and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.step_channel.arrays import WireArray
from deploy.step_channel.errors import ProtocolError
from deploy.step_channel.messages import Propose, Proposed
from smart_serve.drafters.protocol import DraftBatch, DraftInput, Proposal
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.tree import Forest


def batch_to_message(number: int, batch: DraftBatch, wants_vectors: bool) -> Propose:
    """Lays the inputs end to end. Raises `ValueError` if vectors are wanted and missing."""
    inputs = batch.inputs
    vectors = None
    if wants_vectors and inputs:
        parts = [one.vectors for one in inputs if one.vectors is not None]
        if len(parts) != len(inputs):
            raise ValueError("this drafter needs a vector for each token")
        vectors = WireArray.from_tensor(torch.cat(parts))
    tokens = [one.token_ids for one in inputs]
    return Propose(
        number=number,
        sequence_ids=_int_column([one.sequence_id for one in inputs]),
        starts=_int_column([one.start for one in inputs]),
        counts=_int_column([len(one.token_ids) for one in inputs]),
        token_ids=WireArray.from_numpy(np.concatenate(tokens) if tokens else np.empty(0, np.int64)),
        vectors=vectors,
        growth=batch.growth,
    )


def message_to_batch(
    message: Propose, hidden_size: int | None, name: Callable[[int], int]
) -> DraftBatch:
    """The batch, its sequences renamed by `name`. Raises `ProtocolError` if it is inconsistent."""
    ids, starts = _column(message.sequence_ids), _column(message.starts)
    counts, tokens = _column(message.counts), _column(message.token_ids)
    if not len(ids) == len(starts) == len(counts):
        raise ProtocolError("inputs of different lengths")
    if np.any(counts < 1) or np.any(counts > len(tokens)) or int(counts.sum()) != len(tokens):
        raise ProtocolError("counts that do not cover the tokens")
    if np.any(starts < 0):
        raise ProtocolError("a start below 0")
    vectors = None if message.vectors is None else message.vectors.to_tensor()
    if hidden_size is None:
        vectors = None
    elif len(tokens) and (vectors is None or vectors.shape != (len(tokens), hidden_size)):
        raise ProtocolError(f"vectors that are not [{len(tokens)}, {hidden_size}]")
    ends = np.cumsum(counts)
    inputs = tuple(
        DraftInput(
            sequence_id=name(int(ids[i])),
            start=int(starts[i]),
            token_ids=tokens[ends[i] - counts[i] : ends[i]],
            vectors=None if vectors is None else vectors[ends[i] - counts[i] : ends[i]],
        )
        for i in range(len(ids))
    )
    return DraftBatch(inputs, message.growth)


def proposal_to_message(number: int, proposal: Proposal) -> Proposed:
    growth, forest = proposal.growth, proposal.growth.forest
    return Proposed(
        number=number,
        offsets=_int_column(forest.offsets),
        token_ids=_int_column(forest.token_ids),
        parents=_int_column(forest.parents),
        depths=_int_column(forest.depths),
        confidences=WireArray.from_numpy(np.asarray(forest.confidences, np.float64)),
        path_probs=WireArray.from_numpy(np.asarray(forest.path_probs, np.float64)),
        best_by_depth=tuple(tuple(map(float, row)) for row in growth.best_by_depth),
        child_mass=tuple(map(float, growth.child_mass)),
        unknown=tuple(map(int, proposal.unknown)),
        layer_ms=tuple(map(float, proposal.layer_ms)),
        layer_rows=tuple(map(int, proposal.layer_rows)),
    )


def message_to_proposal(message: Proposed, num_inputs: int) -> Proposal:
    """Raises `ProtocolError` unless there is a tree for each input.

    The forest's inner structure is left to `Forest.problem`, which the engine asks anyway.
    """
    forest = Forest(
        offsets=_column(message.offsets),
        token_ids=_column(message.token_ids),
        parents=_column(message.parents),
        depths=_column(message.depths),
        confidences=_column(message.confidences, "float64"),
        path_probs=_column(message.path_probs, "float64"),
    )
    if forest.num_trees != num_inputs:
        raise ProtocolError(f"{forest.num_trees} trees for {num_inputs} sequences")
    if any(not 0 <= index < num_inputs for index in message.unknown):
        raise ProtocolError("an unknown sequence that was not asked for")
    growth = Growth(forest, message.best_by_depth, message.child_mass)
    return Proposal(growth, message.unknown, message.layer_ms, message.layer_rows)


def _int_column(values: Any) -> WireArray:
    return WireArray.from_numpy(np.asarray(values, np.int64))


def _column(array: WireArray, dtype: str = "int64") -> NDArray[Any]:
    if array.dtype != dtype or len(array.shape) != 1:
        raise ProtocolError(f"a column that is not one of {dtype}")
    return array.to_numpy()
