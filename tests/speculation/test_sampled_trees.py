"""Trees that are drawn: their law, their shapes, and, verified by every rule, the target's text.

Draws of tens of thousands of trees at once. A chi-square here fails a right grower with probability
1e-6; seeds are fixed, so a test that passes once passes always.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from growing import plan_of

from smart_serve.config import SampledShape, is_policy, rule_objection, sampled_shape
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.policies import make_grower
from smart_serve.verification.chooser import CounterChooser
from smart_serve.verification.rules import SAMPLED_RULES
from smart_serve.verification.sampled_trees import Draws, SampledTrees

VOCAB = 3
Z_1E6 = 4.76
"""Standard normal quantile at 1 - 1e-6."""
RNG = np.random.default_rng(4)
P_TARGET = RNG.dirichlet(np.full(VOCAB, 0.8), 1 + VOCAB + VOCAB**2)
P_DRAFT = RNG.dirichlet(np.full(VOCAB, 0.8), 1 + VOCAB + VOCAB**2)
"""By context: (), 0, 1, 2, 00, 01, …"""


def chi_square_limit(degrees: int) -> float:
    """Wilson and Hilferty's quantile at 1 - 1e-6."""
    return degrees * (1 - 2 / (9 * degrees) + Z_1E6 * math.sqrt(2 / (9 * degrees))) ** 3


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def drawn(policy: str, temperatures: list[float], seeds: list[int], **changes: object) -> Growth:
    """Trees of a drafter whose distributions are `P_DRAFT`, children best first."""
    shape = sampled_shape(policy)
    assert shape is not None
    plan = plan_of(
        policy,
        max_depth=shape.depth,
        max_nodes=len(seeds) * shape.num_nodes,
        top_k=VOCAB,
        temperatures=tuple(temperatures),
        draw_seeds=tuple(seeds),
        **changes,
    )
    grower = make_grower(plan, len(seeds))
    contexts = np.zeros(len(seeds), np.int64)
    while len(contexts):
        order = np.argsort(-P_DRAFT[contexts], axis=1, kind="stable")
        log_probs = np.log(np.take_along_axis(P_DRAFT[contexts], order, axis=1))
        chosen = grower.add_layer(order, log_probs)
        contexts = (1 + VOCAB * contexts[:, None] + order).reshape(-1)[chosen]
    growth = grower.finish()
    assert growth.laws is not None
    assert growth.laws.problem(growth.forest, VOCAB) is None
    assert growth.forest.problem(VOCAB, plan.max_nodes) is None
    return growth


def laws_of(growth: Growth) -> DraftLaws:
    assert growth.laws is not None
    return growth.laws


def contexts_of(growth: Growth) -> np.ndarray:
    """Of every packed row, roots first in each tree. [R]"""
    forest = growth.forest
    rows = []
    for begin, end in zip(forest.offsets, forest.offsets[1:], strict=False):
        own = [0]
        for node in range(begin, end):
            own.append(1 + VOCAB * own[forest.parents[node]] + int(forest.token_ids[node]))
        rows += own
    return np.asarray(rows)


POLICIES = ("delayed:1,2,0", "delayed:2,0,2", "delayed:3,1,1", "distinct:2,2")
CASES = [
    (policy, rule)
    for policy in POLICIES
    for rule in SAMPLED_RULES
    if rule_objection(rule, policy) is None
]
TREES = 12_000
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def forests() -> dict[str, Growth]:
    return {policy: drawn(policy, [TEMPERATURE] * TREES, list(range(TREES))) for policy in POLICIES}


@pytest.mark.parametrize(("policy", "rule"), CASES)
def test_verified_text_follows_the_target(
    policy: str, rule: str, forests: dict[str, Growth]
) -> None:
    """The first two tokens, jointly; the second is the target's own where the step ends sooner."""
    growth = forests[policy]
    laws, contexts = laws_of(growth), contexts_of(growth)
    p = torch.from_numpy(P_TARGET)[torch.from_numpy(contexts)]
    q = np.zeros((len(contexts), VOCAB))
    roots = growth.forest.offsets[:-1] + np.arange(TREES)
    q[(roots[laws.trees] + laws.rows)[:, None], laws.token_ids] = laws.probs
    draws = Draws(growth.forest, laws.nodes(growth.forest), laws.with_replacement)
    trees = SampledTrees.of(draws, p, torch.from_numpy(q))
    seeds = np.arange(TREES)
    chooser = CounterChooser(seeds, seeds % 50, torch.device("cpu"))
    walked = SAMPLED_RULES[rule](trees, chooser).drawn(trees).numpy()
    first = walked[roots]
    second = np.full(TREES, -1)
    for row in np.flatnonzero((walked >= 0) & (trees.rows.depths == 1)):
        tree = int(np.searchsorted(roots, row, side="right")) - 1
        second[tree] = walked[row]
    counts = np.zeros((VOCAB, VOCAB))
    has_second = second >= 0
    np.add.at(counts, (first[has_second], second[has_second]), 1.0)
    short = np.bincount(first[~has_second], minlength=VOCAB)
    joint = P_TARGET[0][:, None] * P_TARGET[1 : 1 + VOCAB]
    # Steps that end after one token go on by the target's law: its expectation, no more noise.
    counts += short[:, None] * P_TARGET[1 : 1 + VOCAB]
    assert chi_square(counts, TREES * joint) < chi_square_limit(VOCAB**2 - 1)
    drafter = P_DRAFT[0][:, None] * P_DRAFT[1 : 1 + VOCAB]
    assert chi_square(counts, TREES * drafter) > chi_square_limit(VOCAB**2 - 1)


def tempered(law: np.ndarray, temperature: float) -> np.ndarray:
    powered = law ** (1 / temperature)
    return powered / powered.sum()


def test_first_draws_follow_the_drafter_at_the_requests_temperature() -> None:
    temperatures = [0.5, 1.0, 1.6] * 6_000
    growth = drawn("delayed:2,0,1", temperatures, list(range(len(temperatures))))
    laws = laws_of(growth)
    nodes = growth.forest.token_ids[laws.nodes(growth.forest)]
    assert len(nodes) == 2 * len(temperatures)
    for place, temperature in enumerate(temperatures[:3]):
        expected = tempered(P_DRAFT[0], temperature)
        mine = laws.draw_trees % 3 == place
        counts = np.bincount(nodes[mine], minlength=VOCAB)
        assert chi_square(counts, mine.sum() * expected) < chi_square_limit(VOCAB - 1)
        row = laws.token_ids[place].argsort()
        assert laws.probs[place][row] == pytest.approx(expected)
        # The control: another temperature's law does not pass.
        other = tempered(P_DRAFT[0], temperature + 0.3)
        assert chi_square(counts, mine.sum() * other) > chi_square_limit(VOCAB - 1)


@pytest.mark.filterwarnings("error")
def test_as_temperature_vanishes_the_drafters_best_is_left() -> None:
    laws = laws_of(drawn("delayed:2,0,1", [5e-324, 1e-310, 1e-9], [0, 1, 2]))
    assert laws.probs.max(axis=1).tolist() == laws.probs.sum(axis=1).tolist()
    assert {1.0} == set(laws.probs.max(axis=1).tolist())


def test_distinct_children_are_drawn_one_after_the_other(forests: dict[str, Growth]) -> None:
    growth = forests["distinct:2,2"]
    laws, forest = laws_of(growth), growth.forest
    nodes = laws.nodes(forest)
    top = forest.depths[nodes] == 1
    pairs = forest.token_ids[nodes[top]]
    order = np.argsort(laws.draw_trees[top], kind="stable")
    pairs = pairs[order].reshape(TREES, 2)
    law = tempered(P_DRAFT[0], TEMPERATURE)
    expected = law[:, None] * law / (1 - law)[:, None]
    np.fill_diagonal(expected, 0.0)
    counts = np.zeros((VOCAB, VOCAB))
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1.0)
    off = ~np.eye(VOCAB, dtype=bool)
    assert counts[~off].sum() == 0
    assert chi_square(counts[off], TREES * expected[off]) < chi_square_limit(VOCAB**2 - VOCAB - 1)
    assert set(forest.sizes.tolist()) == {6}


@pytest.mark.parametrize("policy", ["delayed:3,1,2", "delayed:4,0,3"])
def test_every_path_draws_once_a_layer_however_paths_agree(policy: str) -> None:
    shape = sampled_shape(policy)
    assert shape is not None
    growth = drawn(policy, [1.0] * 200, list(range(200)))
    laws = laws_of(growth)
    depths = growth.forest.depths[laws.nodes(growth.forest)]
    for depth in range(1, shape.depth + 1):
        counts = np.bincount(laws.draw_trees[depths == depth], minlength=200)
        assert set(counts.tolist()) == {1 if depth <= shape.trunk else shape.num_children}
    # Merged: no two siblings are the same token, and some trees are smaller for it.
    forest = growth.forest
    trees = np.repeat(np.arange(200), forest.sizes)
    names = set(
        zip(trees.tolist(), forest.parents.tolist(), forest.token_ids.tolist(), strict=True)
    )
    assert len(names) == forest.num_nodes
    assert forest.sizes.min() < shape.num_nodes


def test_a_tree_is_drawn_the_same_in_any_batch() -> None:
    together = drawn("delayed:3,1,2", [1.0, 0.7, 0.0, 1.3], [5, 6, 7, 8])
    for place, (temperature, seed) in enumerate(
        zip([1.0, 0.7, 0.0, 1.3], [5, 6, 7, 8], strict=True)
    ):
        alone = drawn("delayed:3,1,2", [temperature], [seed])
        own = together.forest.only([place])
        assert own.token_ids.tolist() == alone.forest.token_ids.tolist()
        laws = laws_of(together).only([place], 4)
        assert laws.draw_rows.tolist() == laws_of(alone).draw_rows.tolist()
        assert np.array_equal(laws.probs, laws_of(alone).probs)


def test_at_temperature_zero_all_paths_are_the_likeliest() -> None:
    growth = drawn("delayed:4,0,2", [0.0], [1])
    best = int(P_DRAFT[0].argmax())
    assert growth.forest.token_ids.tolist() == [best, int(P_DRAFT[1 + best].argmax())]


def test_nothing_is_drawn_below_the_end_of_an_answer() -> None:
    growth = drawn("delayed:2,0,2", [1.0] * 60, list(range(60)), terminal_tokens=(0,))
    forest = growth.forest
    deep = np.flatnonzero(forest.depths == 2)
    trees = np.searchsorted(forest.offsets, deep, side="right") - 1
    parents = forest.offsets[trees] + forest.parents[deep] - 1
    assert len(deep) > 20
    assert 0 in forest.token_ids[forest.depths == 1]
    assert 0 not in forest.token_ids[parents]


def test_laws_follow_their_trees() -> None:
    growth = drawn("delayed:2,1,1", [1.0] * 3, [1, 2, 3])
    spread = growth.spread(5, [0, 2, 3])
    laws = laws_of(spread)
    assert laws.problem(spread.forest, VOCAB) is None
    assert set(laws.trees.tolist()) == {0, 2, 3}
    back = laws.only([2, 3], 5)
    assert back.problem(spread.forest.only([2, 3]), VOCAB) is None
    assert back.probs.tolist() == laws_of(growth).only([1, 2], 3).probs.tolist()


def test_laws_that_do_not_fit_are_refused() -> None:
    growth = drawn("delayed:2,1,1", [1.0] * 3, [1, 2, 3])
    laws, forest = laws_of(growth), growth.forest
    columns = {name: getattr(laws, name) for name in DraftLaws.__slots__}
    spoilt = {
        "different shapes": {"rows": laws.rows[1:]},
        "without a tree": {"draw_rows": laws.draw_rows[1:]},
        "of no tree": {"trees": laws.trees + 1},
        "outside its tree": {"draw_rows": laws.draw_rows - 1},
        "outside the vocabulary": {"token_ids": laws.token_ids + 1},
        "does not sum": {"probs": laws.probs * 0.9},
        "not drawn": {"draw_rows": np.ones_like(laws.draw_rows)},
    }
    for reason, change in spoilt.items():
        problem = DraftLaws(**{**columns, **change}).problem(forest, VOCAB)
        assert problem is not None
        assert reason in problem
    nan = DraftLaws(**{**columns, "probs": np.full_like(laws.probs, np.nan)})
    assert nan.problem(forest, VOCAB) is not None


def test_names_of_drawn_trees() -> None:
    assert sampled_shape("delayed:3,1,2") == SampledShape(3, 1, 3, True)
    assert sampled_shape("distinct:2,3") == SampledShape(2, 0, 3, False)
    sizes = {"delayed:1,4,0": 4, "delayed:3,1,2": 7, "delayed:2,0,3": 6, "distinct:3,2": 12}
    for policy, size in sizes.items():
        shape = sampled_shape(policy)
        assert shape is not None
        assert shape.num_nodes == size
    for wrong in ("delayed:0,1,1", "delayed:2,0,0", "delayed:9,1,1", "delayed:1,2", "distinct:5,1"):
        assert not is_policy(wrong)
        assert sampled_shape(wrong) is None
    assert sampled_shape("smart") is None


def test_what_a_rule_may_verify() -> None:
    legal = {(p, r) for p in (*POLICIES, "smart", "off") for r in SAMPLED_RULES}
    refused = {(p, r) for p, r in legal if rule_objection(r, p) is not None}
    assert refused == {
        *(("smart", rule) for rule in SAMPLED_RULES),
        *((policy, "block") for policy in POLICIES[1:]),
        ("distinct:2,2", "spectr"),
    }
    assert all(rule_objection("match", policy) is None for policy in (*POLICIES, "smart"))
