"""Prompt lookup: what followed earlier is proposed, the longest and latest first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smart_serve.drafters.ngram import NgramDrafter
from smart_serve.drafters.protocol import DraftBatch, DraftInput, Proposal
from smart_serve.drafters.suffix_index import MAX_LINKS, MAX_MATCH, MIN_MATCH, Match, SuffixIndex
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.plan import GrowthPlan

VOCAB = 97
IMAGE = 96
EAGLE2 = GrowthPlan(policy="eagle2", max_nodes=64, max_depth=4, top_k=3, nodes_per_tree=10)
CHAIN = GrowthPlan(policy="chain:3", max_nodes=64, max_depth=3, top_k=1, nodes_per_tree=3)


def drafter(max_tokens: int = 1000) -> NgramDrafter:
    return NgramDrafter(IMAGE, max_tokens=max_tokens)


def item(tokens: list[int], start: int = 0, sequence_id: int = 0) -> DraftInput:
    return DraftInput(sequence_id, start, np.asarray(tokens, np.int64), None)


def ask(one: NgramDrafter, *inputs: DraftInput, plan: GrowthPlan = EAGLE2) -> Proposal:
    proposal = one.propose(DraftBatch(inputs, plan))
    assert proposal.problem(len(inputs), VOCAB, plan) is None
    return proposal


def paths(proposal: Proposal) -> list[tuple[int, ...]]:
    """Of the first tree, root to node, in the forest's order."""
    forest = proposal.growth.forest
    found: list[tuple[int, ...]] = [()]
    for node in range(int(forest.offsets[1])):
        found.append((*found[int(forest.parents[node])], int(forest.token_ids[node])))
    return found[1:]


@given(st.lists(st.integers(0, 2), max_size=60))
def test_matches_equal_a_search_from_scratch(tokens: list[int]) -> None:
    index = SuffixIndex()
    index.extend(tokens)
    expected = []
    for end in range(len(tokens) - 1, 0, -1):
        length = 0
        while length < min(end, MAX_MATCH) and tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        if length >= MIN_MATCH:
            expected.append(Match(end, length))
    assert index.matches() == expected[:MAX_LINKS]


def test_what_followed_is_proposed() -> None:
    assert paths(ask(drafter(), item([5, 6, 7, 8, 9, 5, 6]), plan=CHAIN)) == [
        *((7,), (7, 8), (7, 8, 9)),
    ]


def test_several_occurrences_make_a_tree_the_longest_first() -> None:
    #               1 2 3 -> 4        2 3 -> 5 (later)         1 2 3
    tokens = [1, 2, 3, 4, 40, 41, 9, 2, 3, 5, 50, 51, 8, 1, 2, 3]
    proposal = ask(drafter(), item(tokens))
    assert {(4,), (4, 40), (5,), (5, 50)} <= set(paths(proposal))
    first = dict(zip(paths(proposal), proposal.growth.forest.confidences, strict=True))
    assert 1.0 > first[(4,)] > first[(5,)] > 0.0
    # Having followed an occurrence makes the next token surer.
    assert first[(4, 40)] > first[(4,)]


def test_of_equally_long_ones_the_latest_leads() -> None:
    tokens = [1, 2, 30, 7, 1, 2, 31, 8, 1, 2]
    proposal = ask(drafter(), item(tokens))
    confidences = dict(zip(paths(proposal), proposal.growth.forest.confidences, strict=True))
    assert confidences[(31,)] > confidences[(30,)]


def test_occurrences_that_agree_add_up() -> None:
    once = ask(drafter(), item([1, 2, 30, 7, 8, 1, 2]))
    twice = ask(drafter(), item([1, 2, 30, 7, 1, 2, 30, 8, 1, 2]))
    assert twice.growth.forest.confidences[0] > once.growth.forest.confidences[0]


@pytest.mark.parametrize("tokens", [[4], [4, 5], [1, 2, 3, 4, 5, 6]])
def test_without_an_occurrence_there_is_no_tree(tokens: list[int]) -> None:
    proposal = ask(drafter(), item(tokens))
    assert proposal.unknown == ()
    assert proposal.growth.forest.num_nodes == 0


def test_trees_do_not_depend_on_how_tokens_came_or_on_the_batch() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, 80).tolist()
    whole = ask(drafter(), item(tokens))
    pieces, other = drafter(), rng.integers(0, 4, 9).tolist()
    start = 0
    for end in (1, 2, 30, 31, 80):
        proposal = ask(pieces, item(tokens[start:end], start), item(other, 0, 1))
        start = end
    assert paths(proposal) == paths(whole)
    assert whole.growth.forest.num_nodes == EAGLE2.nodes_per_tree


def test_image_tokens_are_left_out() -> None:
    with_picture = [1, 2, *[IMAGE] * 9, 3, 4, 5, 1, 2, *[IMAGE] * 9, 3]
    one = drafter(max_tokens=8)
    assert paths(ask(one, item(with_picture), plan=CHAIN))[:2] == [(4,), (4, 5)]
    assert one.free_tokens == 0


def test_a_lost_sequence_is_reported_and_can_be_opened_again() -> None:
    one = drafter()
    ask(one, item([1, 2, 3], 0, 7))
    proposal = ask(one, item([1, 2, 30, 1, 2], 0, 6), item([9], 5, 7))
    assert proposal.unknown == (1,)
    assert proposal.growth.forest.sizes[0] > 0
    assert ask(one, item([1, 2, 3], 0, 7)).unknown == ()


def test_memory_is_bounded_and_given_back() -> None:
    one = drafter(max_tokens=10)
    assert ask(one, item([1] * 8, 0, 0), item([1] * 3, 0, 1)).unknown == (1,)
    assert ask(one, item([1, 1, 1], 8, 0)).unknown == (0,)
    assert one.free_tokens == 10
    assert ask(one, item([1] * 10, 0, 2)).unknown == ()
    one.close([2, 2])
    assert one.free_tokens == 10


@pytest.mark.parametrize(("verify_ms", "grows"), [(0.01, True), (50.0, False)])
def test_smart_prunes_what_is_not_worth_its_price(verify_ms: float, grows: bool) -> None:
    plan = GrowthPlan(
        policy="smart",
        max_nodes=64,
        max_depth=4,
        top_k=3,
        verify_knots=(0, 64),
        verify_knot_ms=(1.0, 1.0 + 64 * verify_ms),
        draft_layer=Curve((1.0,), (0.01,)),
    )
    proposal = ask(drafter(), item([1, 2, 3, 4, 5, 1, 2, 3, 4, 9, 1, 2, 3, 4]), plan=plan)
    assert (proposal.growth.forest.num_nodes > 0) == grows


def test_padding_is_never_verified_whatever_was_learnt() -> None:
    """A learnt map may promise acceptance even to what has no probability."""
    plan = GrowthPlan(
        policy="smart",
        max_nodes=64,
        max_depth=3,
        top_k=8,
        verify_knots=(0, 64),
        verify_knot_ms=(1.0, 1.001),
        calibration=((0.9, 0.9),) * 3,
    )
    proposal = ask(drafter(), item([5, 6, 7, 8, 9, 5, 6]), plan=plan)
    assert paths(proposal) == [(7,), (7, 8), (7, 8, 9)]
