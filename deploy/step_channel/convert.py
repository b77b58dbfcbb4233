"""`DraftBatch` and `Proposal` to their messages with arrays, and back."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence

import numpy as np
import torch

from deploy.step_channel.errors import ProtocolError
from deploy.step_channel.frames import Frame
from deploy.step_channel.messages import Laws, Propose, Proposed, Trees
from deploy.step_channel.raw import RawReader, dtype_name, floats, ints, tensor_bytes
from smart_serve.drafters.protocol import DraftBatch, DrafterInfo, DraftInput, Proposal
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.tree import Forest


def batch_to_message(
    number: int, batch: DraftBatch, info: DrafterInfo
) -> tuple[Propose, list[memoryview]]:
    """Lays the inputs end to end. Raises `ValueError` if vectors are wanted and missing."""
    inputs = batch.inputs
    parts = [] if info.vectors == "none" else [one.vectors for one in inputs]
    present = [part for part in parts if part is not None]
    if info.wants_vector_per_token and len(present) < len(parts):
        raise ValueError("this drafter needs a vector for each token")
    tokens = [one.token_ids for one in inputs]
    axes = [one.positions for one in inputs if one.positions is not None]
    message = Propose(
        number=number,
        sequence_ids=tuple([one.sequence_id for one in inputs]),
        starts=tuple([one.start for one in inputs]),
        counts=tuple(map(len, tokens)),
        vector_counts=tuple([0 if part is None else part.size(0) for part in parts]),
        vector_dtype=dtype_name(present[0]) if present else None,
        growth=batch.growth,
        has_positions=bool(axes),
        trace_parents=tuple(
            [(i, one.trace_parent) for i, one in enumerate(inputs) if one.trace_parent is not None]
        ),
    )
    arrays = [ints(np.concatenate(tokens) if tokens else ())]
    if axes:
        arrays.append(ints(np.concatenate(axes, axis=1)))
    if present:
        arrays.append(tensor_bytes(present))
    return message, arrays


def message_to_batch(
    frame: Frame[Propose], info: DrafterInfo, name: Callable[[int], int]
) -> DraftBatch:
    """The batch, its sequences renamed by `name`. Raises `ProtocolError` if it is inconsistent."""
    message, raw = frame.message, RawReader(frame.raw)
    ids, starts, counts = message.sequence_ids, message.starts, message.counts
    if not len(ids) == len(starts) == len(counts):
        raise ProtocolError("inputs of different lengths")
    if len(set(ids)) < len(ids):
        raise ProtocolError("a sequence that is asked for twice")
    if min(counts, default=1) < 1:
        raise ProtocolError("inputs without a token")
    num_tokens = sum(counts)
    # A copy: who keeps some tokens must not keep the frame with all of its vectors.
    tokens = raw.ints(num_tokens).copy()
    positions = raw.ints(3, num_tokens).copy() if message.has_positions else None
    vectors = _vectors(message, raw, info)
    raw.end()
    ends = itertools.accumulate(counts)
    trace_parents = dict(message.trace_parents)
    inputs = tuple(
        [
            DraftInput(
                sequence_id=name(ids[i]),
                start=starts[i],
                token_ids=tokens[end - counts[i] : end],
                vectors=vectors[i],
                positions=None if positions is None else positions[:, end - counts[i] : end],
                trace_parent=trace_parents.get(i),
            )
            for i, end in enumerate(ends)
        ]
    )
    return DraftBatch(inputs, message.growth)


def _vectors(message: Propose, raw: RawReader, info: DrafterInfo) -> Sequence[torch.Tensor | None]:
    """What each input brings beside its tokens."""
    own, counts = message.vector_counts, message.counts
    nothing = [None] * len(counts)
    if info.vector_size is None:
        return nothing
    if len(own) != len(counts) or any(map(operator.gt, own, counts)):
        raise ProtocolError("vector counts that do not fit the inputs")
    if info.wants_vector_per_token and own != counts:
        raise ProtocolError("tokens without a vector")
    total = sum(own)
    if (message.vector_dtype is None) != (total == 0):
        raise ProtocolError("vectors that were counted and not sent, or sent and not counted")
    if message.vector_dtype is None:
        return nothing
    vectors = raw.tensor(message.vector_dtype, total, info.vector_size)
    parts = vectors.split_with_sizes(own)
    return [part if count else None for part, count in zip(parts, own, strict=True)]


def proposal_to_message(number: int, proposal: Proposal) -> tuple[Proposed, list[memoryview]]:
    growth = proposal.growth
    laws, considered = growth.laws, growth.considered
    message = Proposed(
        number=number,
        forest=_trees(growth.forest),
        best_by_depth=tuple([tuple(map(float, row)) for row in growth.best_by_depth]),
        child_mass=tuple(map(float, growth.child_mass)),
        unknown=tuple(map(int, proposal.unknown)),
        layer_ms=tuple(map(float, proposal.layer_ms)),
        layer_rows=tuple(map(int, proposal.layer_rows)),
        laws=None if laws is None else _shape_of_laws(laws),
        considered=None if considered is None else _trees(considered),
    )
    arrays = _forest_arrays(growth.forest)
    arrays += [] if laws is None else _law_arrays(laws)
    arrays += [] if considered is None else _forest_arrays(considered)
    return message, arrays


def message_to_proposal(frame: Frame[Proposed], num_inputs: int) -> Proposal:
    """Raises `ProtocolError` unless there is a tree for each input.

    The inner structure is left to `Proposal.problem`, which the engine asks anyway.
    """
    message, raw = frame.message, RawReader(frame.raw)
    if message.forest.num_trees != num_inputs:
        raise ProtocolError(f"{message.forest.num_trees} trees for {num_inputs} sequences")
    if any(not 0 <= index < num_inputs for index in message.unknown):
        raise ProtocolError("an unknown sequence that was not asked for")
    forest = _forest(message.forest, raw)
    laws = None if message.laws is None else _laws(message.laws, raw)
    considered = None if message.considered is None else _forest(message.considered, raw)
    raw.end()
    growth = Growth(
        forest, message.best_by_depth, message.child_mass, laws=laws, considered=considered
    )
    return Proposal(growth, message.unknown, message.layer_ms, message.layer_rows)


def _trees(forest: Forest) -> Trees:
    return Trees(forest.num_trees, forest.num_nodes)


def _forest_arrays(forest: Forest) -> list[memoryview]:
    return [
        ints(forest.offsets),
        ints(forest.token_ids),
        ints(forest.parents),
        ints(forest.depths),
        floats(forest.confidences),
        floats(forest.path_probs),
    ]


def _forest(trees: Trees, raw: RawReader) -> Forest:
    # All of a type at once: each view costs a microsecond, and a step has six of them.
    num_nodes, ends = trees.num_nodes, trees.num_trees + 1
    ints, floats = raw.ints(ends + 3 * num_nodes), raw.floats(2 * num_nodes)
    return Forest(
        offsets=ints[:ends],
        token_ids=ints[ends : ends + num_nodes],
        parents=ints[ends + num_nodes : ends + 2 * num_nodes],
        depths=ints[ends + 2 * num_nodes :],
        confidences=floats[:num_nodes],
        path_probs=floats[num_nodes:],
    )


def _shape_of_laws(laws: DraftLaws) -> Laws:
    num_rows, num_tokens = laws.token_ids.shape
    return Laws(num_rows, num_tokens, len(laws.draw_trees), laws.with_replacement)


def _law_arrays(laws: DraftLaws) -> list[memoryview]:
    return [
        ints(laws.trees),
        ints(laws.rows),
        ints(laws.token_ids),
        floats(laws.probs),
        ints(laws.draw_trees),
        ints(laws.draw_rows),
    ]


def _laws(shape: Laws, raw: RawReader) -> DraftLaws:
    return DraftLaws(
        trees=raw.ints(shape.num_rows),
        rows=raw.ints(shape.num_rows),
        token_ids=raw.ints(shape.num_rows, shape.num_tokens),
        probs=raw.floats(shape.num_rows, shape.num_tokens),
        draw_trees=raw.ints(shape.num_draws),
        draw_rows=raw.ints(shape.num_draws),
        with_replacement=shape.with_replacement,
    )
