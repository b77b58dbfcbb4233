"""What a step drafted for one sequence and what became of it, for whoever asked to see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smart_serve.speculation.step_observation import StepObservation
from smart_serve.speculation.tree import Forest
from smart_serve.step_trace import NodeFate, StepTrace, TracedNode

Path = tuple[int, ...]
"""Tokens from the root's child to a node; it names the node, for siblings differ."""


def step_trace(
    place: int, seen: StepObservation, draft_ms: float, plain_ms: float, predicted_ms: float
) -> StepTrace:
    """Of the tree at `place` in the step's batch."""
    considered = None if seen.growth is None else seen.growth.considered
    return StepTrace(
        policy=seen.policy,
        batch=seen.batch,
        batch_nodes=seen.forest.num_nodes,
        nodes=traced_nodes(place, seen.forest, seen.accepted, considered),
        draft_ms=draft_ms,
        verify_ms=seen.verify_ms,
        step_ms=seen.step_ms,
        predicted_ms=predicted_ms,
        plain_ms=plain_ms,
    )


def traced_nodes(
    place: int, forest: Forest, accepted: NDArray[np.bool_], considered: Forest | None
) -> tuple[TracedNode, ...]:
    """Tree `place` of `forest`, whose nodes `accepted` [M] tells of; then what the same tree of
    `considered` has beside them."""
    begin, end = int(forest.offsets[place]), int(forest.offsets[place + 1])
    fates: list[NodeFate] = [
        "accepted" if yes else "rejected" for yes in accepted[begin:end].tolist()
    ]
    nodes = [
        TracedNode(token, parent, prob, fate)
        for (token, parent, prob), fate in zip(_tree(forest, place), fates, strict=True)
    ]
    if considered is None:
        return tuple(nodes)
    paths = _paths(_tree(forest, place))
    rows = {path: row for row, path in enumerate(paths)}
    candidates = _tree(considered, place)
    for (token, _, prob), path in zip(candidates, _paths(candidates)[1:], strict=True):
        if path not in rows:
            nodes.append(TracedNode(token, rows[path[:-1]], prob, "pruned"))
            rows[path] = len(nodes)
    return tuple(nodes)


def _tree(forest: Forest, place: int) -> list[tuple[int, int, float]]:
    """(token, row of the parent, path probability) of each node of one tree."""
    own = slice(int(forest.offsets[place]), int(forest.offsets[place + 1]))
    columns = (forest.token_ids[own], forest.parents[own], forest.path_probs[own])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _paths(tree: list[tuple[int, int, float]]) -> list[Path]:
    """By row, the root's first."""
    paths: list[Path] = [()]
    for token, parent, _ in tree:
        paths.append((*paths[parent], token))
    return paths
