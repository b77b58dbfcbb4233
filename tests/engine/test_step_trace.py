"""What is told of a traced step is what the step did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from draft_doubles import KnowingDrafter, forest_of, thicket
from engine_rig import Case, make_engine, random_feature_drafter
from msgspec.structs import replace
from small_models import VOCAB

from smart_serve.engine.engine import Engine
from smart_serve.engine.trace import traced_nodes
from smart_serve.messages import TokenChunk
from smart_serve.speculation.growth import MAX_PRUNED
from smart_serve.step_trace import TracedNode

POLICIES = ("eagle2", "smart", "delayed:2,1,2", "chain:3", "off")


def chunks(engine: Engine, cases: list[Case], traced: set[int]) -> dict[int, list[TokenChunk]]:
    """What each request was sent."""
    got: dict[int, list[TokenChunk]] = {i: [] for i in range(len(cases))}
    for i, case in enumerate(cases):
        engine.add(replace(case.request(name=str(i)), trace=i in traced), case.features)
    while engine.scheduler.has_work:
        for emission in engine.step():
            assert emission.chunk is not None
            got[int(emission.sequence.request.request_id)].append(emission.chunk)
    return got


def path_of(nodes: tuple[TracedNode, ...], row: int) -> list[int]:
    return [] if row == 0 else [*path_of(nodes, nodes[row - 1].parent), nodes[row - 1].token_id]


def accepted_path(nodes: tuple[TracedNode, ...]) -> list[int]:
    """Tokens of the deepest accepted node's path; every node of it is accepted."""
    rows = [row for row, node in enumerate(nodes, 1) if node.fate == "accepted"]
    deepest = max((path_of(nodes, row) for row in rows), key=len, default=[])
    assert len(deepest) == len(rows)
    return deepest


@pytest.mark.parametrize("policy", POLICIES)
def test_the_accepted_nodes_are_the_tokens_that_were_emitted(
    small_llava: Path, llava_cases: list[Case], policy: str
) -> None:
    cases = llava_cases[:4]
    honest = KnowingDrafter(thicket(np.random.default_rng(2), VOCAB))
    honest.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(cases)}
    drafter = honest if policy in ("eagle2", "smart") else random_feature_drafter(small_llava)
    got = chunks(make_engine(small_llava, drafter, policy), cases, {0, 2})
    for i, sent in got.items():
        assert [token for chunk in sent for token in chunk.token_ids] == list(cases[i].answer)
        for chunk in sent:
            if i in (1, 3) or chunk is sent[0]:
                assert chunk.trace is None
                continue
            assert chunk.trace is not None
            assert chunk.trace.policy == ("off" if not chunk.trace.batch_nodes else policy)
            told = accepted_path(chunk.trace.nodes)
            assert told[: len(chunk.token_ids)] == list(chunk.token_ids[: chunk.num_accepted])
    assert any(chunk.num_accepted for chunk in got[0]) == (drafter is honest)


def test_what_was_not_worth_verifying_is_told_too(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    engine = make_engine(small_llava, random_feature_drafter(small_llava), "eagle2")
    for chunk in chunks(engine, llava_cases[:2], {0, 1})[1][1:-1]:
        assert chunk.trace is not None
        nodes = chunk.trace.nodes
        fates = [node.fate for node in nodes]
        assert len(fates) - fates.count("pruned") == 20 == chunk.trace.batch_nodes / 2
        assert 0 < fates.count("pruned") <= MAX_PRUNED
        paths = [tuple(path_of(nodes, row)) for row in range(1, len(nodes) + 1)]
        assert len(set(paths)) == len(paths)
        for node in nodes:
            above = nodes[node.parent - 1] if node.parent else None
            assert above is None or above.path_prob >= node.path_prob
            assert above is None or above.fate != "pruned" or node.fate == "pruned"


def test_nodes_of_both_forests_meet_by_their_paths() -> None:
    verified = forest_of([[(9, 0)], [(5, 0), (6, 1)]])
    considered = forest_of([[], [(7, 0), (5, 0), (7, 2), (6, 2)]])
    accepted = np.array([False, True, False])
    told = [
        (node.token_id, node.parent, node.fate)
        for node in traced_nodes(1, verified, accepted, considered)
    ]
    assert told == [
        (5, 0, "accepted"), (6, 1, "rejected"), (7, 0, "pruned"), (7, 1, "pruned"),
    ]  # fmt: skip
