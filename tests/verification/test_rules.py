"""Every rule emits the target's law exactly, on every kind of tree that it may be used for."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from enumeration import (
    VOCAB,
    Drawer,
    Drawing,
    Law,
    Outcome,
    Rule,
    delayed,
    index_of,
    outcome,
    random_pairs,
    target_law,
    without_replacement,
)

from smart_serve.verification.chooser import Chooser
from smart_serve.verification.descent import descend
from smart_serve.verification.rules import SAMPLED_RULES
from smart_serve.verification.sampled_trees import SampledTrees, Verdict

EXACT = 1e-12
PAIRS = random_pairs()


def match_rule(trees: SampledTrees, chooser: Chooser) -> Verdict:
    """What `match` does, with independent draws."""

    def choose(p_target: torch.Tensor, *rest: Any) -> torch.Tensor:
        return chooser.categorical(p_target, rest[-1])

    return descend(choose, trees, chooser)


RULES: dict[str, Rule] = {"match": match_rule, **SAMPLED_RULES}


@dataclass(frozen=True)
class Kind:
    draw: Drawer
    with_replacement: bool
    rules: tuple[str, ...]


ANY = ("match", "naive", "specinfer", "traversal")
KINDS = {
    "chain": Kind(delayed(1, 2, 0), True, (*ANY, "spectr", "block")),
    "independent": Kind(delayed(2, 0, 2), True, (*ANY, "spectr")),
    "delayed": Kind(delayed(2, 1, 1), True, (*ANY, "spectr")),
    "one, without replacement": Kind(without_replacement(1, 2), False, ANY),
    "two, without replacement": Kind(without_replacement(2, 2), False, ANY),
}
LEGAL = [(kind, rule) for kind, value in KINDS.items() for rule in value.rules]


@functools.cache
def result(kind: str, rule: str, pair: int) -> Outcome:
    (p, q), chosen = PAIRS[pair], KINDS[kind]
    return outcome(
        RULES[rule], p, q, list(chosen.draw(q)), with_replacement=chosen.with_replacement
    )


def error(got: Outcome, p: Law) -> float:
    return float(np.abs(got.law - target_law(p)).max())


@pytest.mark.parametrize(("kind", "rule"), LEGAL)
def test_the_text_follows_the_target_exactly(kind: str, rule: str) -> None:
    for pair, (p, _) in enumerate(PAIRS):
        assert error(result(kind, rule, pair), p) < EXACT


# ---- expected lengths


def spectr_parts(p: np.ndarray, q: np.ndarray, k: int) -> tuple[float, np.ndarray, float]:
    """(rho, min(p/rho, q), mass accepted by the draws); scipy-free root by a fine bisection."""
    low, high = 1.0, float(k)
    for _ in range(60):
        middle = (low + high) / 2
        beta = np.minimum(p / middle, q).sum()
        low, high = (low, middle) if 1 - (1 - beta) ** k <= middle * beta else (middle, high)
    overlap = np.minimum(p / high, q)
    return high, overlap, 1 - (1 - overlap.sum()) ** k


def accepted_at_a_node(rule: str, p: np.ndarray, q: np.ndarray, k: int) -> float:
    """Probability that the token chosen is one of `k` independent draws: Dynamic Delayed Tree
    Expansion, arXiv 2602.16994, appendix B."""
    if rule == "match":
        return float((p * (1 - (1 - q) ** k)).sum())
    if rule == "naive":
        met = (np.maximum(p - q, 0) * (1 - (1 - q) ** (k - 1))).sum()
        return float(np.minimum(p, q).sum() + met)
    if rule == "spectr":
        rho, overlap, mass = spectr_parts(p, q, k)
        if mass > 1 - 1e-9:
            return 1.0
        rest = np.maximum(p - overlap * (mass / overlap.sum() if mass else 0.0), 0)
        rejected = np.maximum(q - p / rho, 0) / (1 - overlap.sum())
        met = (rest / rest.sum() * (1 - (1 - rejected) ** k)).sum()
        return float(mass + (1 - mass) * met)
    left, never, rejected = 1.0, np.ones(VOCAB), p
    for _ in range(k):
        share = np.minimum(rejected, q).sum()
        if share > 1 - 1e-9:
            return 1.0
        never = never * (1 - np.maximum(q - rejected, 0) / (1 - share))
        rest = np.maximum(rejected - q, 0)
        left, rejected = left * (1 - share), rest / rest.sum()
    return float(1 - left + left * (rejected * (1 - never)).sum())


@pytest.mark.parametrize("num_draws", [1, 2, 3])
@pytest.mark.parametrize("rule", ["match", "naive", "specinfer", "spectr"])
def test_acceptance_at_a_node_is_that_of_the_formula(rule: str, num_draws: int) -> None:
    drawer = delayed(num_draws, 0, 1)
    for p, q in PAIRS:
        got = outcome(RULES[rule], p, q, list(drawer(q)), with_replacement=True).accepted
        assert got == pytest.approx(accepted_at_a_node(rule, p[0], q[0], num_draws), abs=1e-8)


@pytest.mark.parametrize("rule", ["block", "traversal"])
def test_on_a_chain_the_length_is_the_sum_of_the_weights(rule: str) -> None:
    """E[tau] = sum of E[w_i], which is never less than what `naive` reaches."""
    for pair, (p, q) in enumerate(PAIRS):
        expected = 0.0
        for drawing in delayed(1, 2, 0)(q):
            weight = 1.0
            for path in drawing.draws:
                at = index_of(path[:-1]), path[-1]
                weight = min(1.0, weight * p[at] / q[at])
                expected += drawing.prob * weight
        got = result("chain", rule, pair).accepted
        assert got == pytest.approx(expected, abs=EXACT)
        assert got >= result("chain", "naive", pair).accepted - EXACT


def kept(q: Law, size: int) -> Law:
    """The `size` best tokens of every context, renormalised: the law of a deterministic tree whose
    children are all drawn, one after the other."""
    best = np.argsort(-q, axis=1, kind="stable")[:, :size]
    mask = np.zeros_like(q)
    np.put_along_axis(mask, best, 1.0, axis=1)
    return q * mask / (q * mask).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("rule", ["match", "naive", "specinfer", "traversal"])
def test_on_deterministic_trees_all_rules_tie(rule: str) -> None:
    """At the sum of the target's probabilities of all nodes."""
    drawer = without_replacement(2, 2)
    for p, q in PAIRS[::4]:
        law = kept(q, 2)
        drawings = list(drawer(law))
        got = outcome(RULES[rule], p, law, drawings, with_replacement=False)
        mass = [p[index_of(d[:-1]), d[-1]] for d in sorted(set(drawings[0].draws))]
        tree = {path: p[index_of(path[:-1]), path[-1]] for path in drawings[0].draws}
        assert len(tree) == len(mass) == 6
        expected = sum(tree[path[:1]] * (tree[path] if len(path) == 2 else 1.0) for path in tree)
        assert got.accepted == pytest.approx(expected, abs=EXACT)
        assert error(got, p) < EXACT


# ---- the controls: what is wrong must be seen to be wrong

BIASED = 1e-3


def worst(outcomes: list[tuple[Outcome, Law]]) -> float:
    return max(error(got, p) for got, p in outcomes)


def test_sampled_siblings_pruned_by_confidence_are_biased() -> None:
    outcomes = []
    for p, q in PAIRS:
        pruned = [
            Drawing(d.prob, tuple(x for x in d.draws if q[0, x[0]] > 0.3))
            for d in delayed(2, 0, 1)(q)
        ]
        outcomes.append((outcome(RULES["specinfer"], p, q, pruned, with_replacement=True), p))
    assert worst(outcomes) > BIASED


def test_traversal_of_a_fixed_tree_by_the_raw_law_is_biased() -> None:
    fixed = [Drawing(1.0, ((0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)))]
    outcomes = [
        (outcome(RULES["traversal"], p, q, fixed, with_replacement=False), p) for p, q in PAIRS[::4]
    ]
    assert worst(outcomes) > BIASED


@pytest.mark.parametrize("rule", list(RULES))
def test_a_bonus_without_temperature_is_biased(rule: str) -> None:
    """The leaves' law is told to the rule at another temperature."""
    p, q = PAIRS[0]
    told = p.copy()
    told[1:4] = p[1:4] ** 2 / (p[1:4] ** 2).sum(axis=1, keepdims=True)
    drawings = list(delayed(1, 1, 0)(q))
    got = outcome(RULES[rule], p, q, drawings, with_replacement=True, rule_p=told)
    assert error(got, p) > BIASED


@pytest.mark.parametrize("rule", ["specinfer", "spectr"])
def test_draws_without_replacement_taken_for_independent_ones_are_biased(rule: str) -> None:
    outcomes = [
        (outcome(RULES[rule], p, q, list(without_replacement(2, 1)(q)), with_replacement=True), p)
        for p, q in PAIRS
    ]
    assert worst(outcomes) > BIASED
