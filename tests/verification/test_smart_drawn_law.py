"""Trees whose size is decided while they are drawn: the text's law stays the target's, exactly.

The grower itself is run for every sequence of draws that it can make.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pytest
from enumeration import Drawing, Law, Outcome, index_of, outcome, random_pairs, target_law

from smart_serve.speculation.cost import Curve
from smart_serve.speculation.growth import Growth, Layer
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.smart_drawn import SmartDrawnGrower
from smart_serve.speculation.tree import FloatArray, IntArray
from smart_serve.verification.rules import SAMPLED_RULES

PAIRS = random_pairs(8)
PLAN = GrowthPlan(
    policy="smart-drawn",
    max_nodes=6,
    max_depth=2,
    top_k=3,
    # A node must bring a fifth of a token or so; a third sibling never does.
    verify_knots=(0, 12),
    verify_knot_ms=(10.0, 24.0),
    draft_layer=Curve((1.0, 4.0), (0.5, 2.0)),
    calibration=((0.3, 0.9), (0.2, 0.6), (0.0, 0.0)),
    draw_seeds=(0,),
    temperatures=(1.0,),
)
RULES = ("naive", "specinfer", "traversal")


class Scripted(SmartDrawnGrower):
    """Draws what it is told to, then the first there is; notes the laws it drew from."""

    def tell(self, script: tuple[int, ...]) -> None:
        self.script = script
        self.made: list[tuple[int, FloatArray]] = []

    def pick(self, weights: FloatArray, trees: IntArray) -> IntArray:
        for law in weights / weights.sum(axis=1, keepdims=True):
            at = len(self.made)
            first = int(np.flatnonzero(law)[0])
            self.made.append((self.script[at] if at < len(self.script) else first, law))
        return np.asarray([column for column, _ in self.made[-len(weights) :]])


class Peeking(Scripted):
    """The control: a sibling that turns out unlikely is put back."""

    def places(self, layer: Layer, laws: FloatArray) -> IntArray:
        drawn = super().places(layer, laws)
        return drawn[layer.confidences[drawn] > 0.35]


def grown(kind: type[Scripted], q: Law, script: tuple[int, ...]) -> tuple[Scripted, Growth]:
    grower = kind(PLAN, 1)
    grower.tell(script)
    contexts: list[tuple[int, ...]] = [()]
    while contexts:
        laws = q[[index_of(context) for context in contexts]]
        order = np.argsort(-laws, axis=1, kind="stable")
        with np.errstate(divide="ignore"):
            log_probs = np.log(np.take_along_axis(laws, order, axis=1))
        chosen = grower.add_layer(order, log_probs)
        contexts = [(*contexts[i // 3], int(order.reshape(-1)[i])) for i in chosen.tolist()]
    return grower, grower.finish()


def paths_of(growth: Growth) -> tuple[tuple[int, ...], ...]:
    """Of every draw, in order."""
    assert growth.laws is not None
    rows: list[tuple[int, ...]] = [()]
    for parent, token in zip(growth.forest.parents, growth.forest.token_ids, strict=True):
        rows.append((*rows[parent], int(token)))
    return tuple(rows[row] for row in growth.laws.draw_rows)


def drawings(kind: type[Scripted], q: Law) -> Iterator[Drawing]:
    """Every outcome of the draws, once."""
    scripts: list[tuple[int, ...]] = [()]
    while scripts:
        script = scripts.pop()
        grower, growth = grown(kind, q, script)
        columns = tuple(column for column, _ in grower.made)
        prob = float(np.prod([law[column] for column, law in grower.made]))
        yield Drawing(prob, paths_of(growth))
        for at, (column, law) in list(enumerate(grower.made))[len(script) :]:
            others = np.flatnonzero(law)
            scripts += [(*columns[:at], int(x)) for x in others[others != column]]


@functools.cache
def drawn(kind: type[Scripted], pair: int) -> list[Drawing]:
    return list(drawings(kind, PAIRS[pair][1]))


def result(kind: type[Scripted], rule: str, pair: int) -> Outcome:
    p, q = PAIRS[pair]
    return outcome(SAMPLED_RULES[rule], p, q, drawn(kind, pair), with_replacement=False)


def error(got: Outcome, p: Law) -> float:
    return float(np.abs(got.law - target_law(p)).max())


def test_how_much_is_drawn_depends_on_what_was_drawn_before() -> None:
    adaptive = 0
    for pair in range(len(PAIRS)):
        outcomes = drawn(Scripted, pair)
        assert sum(d.prob for d in outcomes) == pytest.approx(1.0, abs=1e-12)
        adaptive += len({len(d.draws) for d in outcomes}) > 1
        # Also the number of siblings alone.
        tops = {sum(len(path) == 1 for path in d.draws) for d in outcomes}
        adaptive += len(tops) > 1
    assert adaptive > len(PAIRS)


@pytest.mark.parametrize("rule", RULES)
def test_the_text_follows_the_target_exactly(rule: str) -> None:
    for pair, (p, _) in enumerate(PAIRS):
        assert error(result(Scripted, rule, pair), p) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_deciding_by_the_drawn_siblings_value_is_biased(rule: str) -> None:
    """The control."""
    worst = max(error(result(Peeking, rule, pair), p) for pair, (p, _) in enumerate(PAIRS))
    assert worst > 1e-3
