"""Rules over ragged batches: as each tree by itself, as the paper's own loop, and by real draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from enumeration import delayed, draws_of, index_of, random_pairs, target_law, without_replacement

from smart_serve.speculation.tree import Forest
from smart_serve.verification.chooser import CounterChooser
from smart_serve.verification.match import match
from smart_serve.verification.rules import SAMPLED_RULES
from smart_serve.verification.sampled_trees import Draws, SampledTrees

VOCAB = 6
Tree = list[tuple[int, int]]
"""(token, row of the parent), siblings distinct"""


def random_tree(rng: np.random.Generator, depth: int, max_draws: int) -> tuple[Tree, list[int]]:
    """A tree of independent draws merged, and the row of every draw."""
    tree: Tree = []
    rows: list[int] = []
    level = [0]
    for _ in range(int(rng.integers(0, depth + 1))):
        below = []
        for parent in level:
            for _ in range(int(rng.integers(0, max_draws + 1))):
                node = (int(rng.integers(0, VOCAB)), parent)
                if node not in tree:
                    tree.append(node)
                    below.append(len(tree))
                rows.append(tree.index(node) + 1)
        level = below
    return tree, rows


def batch_of(trees: list[tuple[Tree, list[int]]], *, with_replacement: bool = True) -> Draws:
    nodes = [node for tree, _ in trees for node in tree]
    offsets = np.cumsum([0, *(len(tree) for tree, _ in trees)])
    depths: list[int] = []
    for tree, _ in trees:
        own = [0]
        for _, parent in tree:
            own.append(own[parent] + 1)
        depths += own[1:]
    ones = np.ones(len(nodes))
    ints = [np.asarray(x, np.int64) for x in ([n[0] for n in nodes], [n[1] for n in nodes], depths)]
    order = [
        offset + row - 1 for offset, (_, rows) in zip(offsets, trees, strict=False) for row in rows
    ]
    forest = Forest(offsets, *ints, ones, ones)
    return Draws(forest, np.asarray(order, np.int64), with_replacement)


def laws(rng: np.random.Generator, rows: int) -> torch.Tensor:
    law = rng.dirichlet(np.full(VOCAB, 0.6), rows)
    return torch.from_numpy(law / law.sum(axis=1, keepdims=True))


def chooser_for(places: list[int]) -> CounterChooser:
    seeds = np.asarray([100 + i for i in places], np.int64)
    return CounterChooser(seeds, np.asarray([7 * i for i in places]), torch.device("cpu"))


@pytest.mark.parametrize("rule", list(SAMPLED_RULES))
def test_a_tree_fares_the_same_alone_and_in_a_batch(rule: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(12):
        drawn = [random_tree(rng, 4, 1 if rule == "block" else 3) for _ in range(9)]
        sizes = [len(tree) + 1 for tree, _ in drawn]
        p, q = laws(rng, sum(sizes)), laws(rng, sum(sizes))
        together = SampledTrees.of(batch_of(drawn), p, q)
        verdict = SAMPLED_RULES[rule](together, chooser_for(list(range(9))))
        walk = match(together.draws.forest, verdict.drawn(together))
        first = 0
        for i, (tree, size) in enumerate(zip(drawn, sizes, strict=True)):
            own = slice(first, first + size)
            alone = SampledTrees.of(batch_of([tree]), p[own], q[own])
            one = SAMPLED_RULES[rule](alone, chooser_for([i]))
            assert int(one.last[0]) == int(verdict.last[i]) - first
            assert int(one.bonus[0]) == int(verdict.bonus[i])
            # What match is told makes it walk the same way, and stop where the rule did.
            path = [0, *walk.paths[i, : walk.lengths[i]].tolist()]
            assert path[-1] == int(one.last[0])
            assert int(walk.bonus[i]) == int(one.bonus[0])
            first += size


def literal_traversal(
    tree: Tree, order: list[int], p: np.ndarray, q: np.ndarray, uniforms: list[float]
) -> int:
    """The paper's loop, word by word, on one tree; the row where the walk ends."""
    p, q = p.copy(), q.copy()
    token = [-1, *(t for t, _ in tree)]
    parent = [0, *(c for _, c in tree)]
    first = list(dict.fromkeys(order))
    left = set(first)
    a = [1.0] * (len(tree) + 1)

    def recompute(c: int) -> None:
        for x in first:
            if x in left and parent[x] == c:
                a[x] = min(1.0, a[c] * p[c][token[x]] / max(q[c][token[x]], 1e-300))
                recompute(x)

    recompute(0)
    for uniform in uniforms:
        v = 0
        while below := [x for x in first if x in left and parent[x] == v]:
            v = below[0]
        if v == 0 or uniform < a[v]:
            return v
        c = parent[v]
        rest = np.maximum(a[c] * p[c] - q[c], 0.0)
        total = rest.sum()
        p[c] = rest / total if total > 0 else p[c]
        a[c] = total / (total + 1.0 - a[c]) if total + 1.0 - a[c] > 0 else 0.0
        q[c][token[v]] = 0.0
        q[c] = q[c] / q[c].sum() if q[c].sum() > 0 else q[c]
        left.remove(v)
        recompute(c)
    return 0


def test_traversal_in_step_is_the_papers_loop() -> None:
    rng = np.random.default_rng(8)
    ends = set()
    for trial in range(150):
        tree, order = random_tree(rng, 4, 3)
        p, q = laws(rng, len(tree) + 1), laws(rng, len(tree) + 1)
        trees = SampledTrees.of(batch_of([(tree, order)]), p, q)
        got = int(SAMPLED_RULES["traversal"](trees, chooser_for([trial])).last[0])
        chooser = chooser_for([trial])
        uniforms = [float(chooser.uniforms(n)[0]) for n in range(1, len(tree) + 2)]
        assert got == literal_traversal(tree, order, p.numpy(), q.numpy(), uniforms)
        ends.add(trees.rows.depths[got])
    assert ends == {0, 1, 2, 3, 4}


Z_1E6 = 4.76
"""Standard normal quantile at 1 - 1e-6: the false-alarm rate of each comparison below."""


def chi_square_limit(degrees: int) -> float:
    """Wilson and Hilferty's quantile at 1 - 1e-6."""
    return degrees * (1 - 2 / (9 * degrees) + Z_1E6 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("rule", list(SAMPLED_RULES))
def test_real_draws_follow_the_law(rule: str) -> None:
    """Every decision by its uniform; the trees of one batch are drawn as often as they are likely,
    up to rounding, which the chi-square allows for by comparing with that mixture's own law."""
    p, q = random_pairs()[0]
    drawer = delayed(1, 2, 0) if rule == "block" else delayed(2, 0, 1)
    drawings = [d for d in drawer(q) for _ in range(round(30_000 * d.prob))]
    draws, paths = draws_of(drawings, with_replacement=True)
    contexts = np.asarray([index_of(path) for tree in paths for path in [(), *tree]])
    told, drafted = torch.from_numpy(p[contexts]), torch.from_numpy(q[contexts])
    trees = SampledTrees.of(draws, told, drafted)
    count = len(drawings)
    chooser = CounterChooser(np.full(count, 5), np.arange(count), torch.device("cpu"))
    verdict = SAMPLED_RULES[rule](trees, chooser)
    walked = verdict.drawn(trees).numpy()
    counts = np.bincount(walked[trees.rows.roots], minlength=3)
    expected = count * target_law(p).reshape(3, -1).sum(axis=1)
    assert ((counts - expected) ** 2 / expected).sum() < chi_square_limit(2)
    wrong = count * q[0]
    assert ((counts - wrong) ** 2 / wrong).sum() > chi_square_limit(2)


def test_an_empty_batch_of_trees_gives_the_targets_own_tokens() -> None:
    rng = np.random.default_rng(1)
    p = laws(rng, 2)
    for rule in SAMPLED_RULES.values():
        trees = SampledTrees.of(batch_of([([], []), ([], [])]), p, p)
        verdict = rule(trees, chooser_for([0, 1]))
        assert verdict.last.tolist() == [0, 1]
        assert (p[[0, 1], verdict.bonus] > 0).all()


def test_without_replacement_draws_are_laid_out_in_order() -> None:
    _, q = random_pairs()[0]
    drawings = list(without_replacement(2, 2)(q))
    draws, _ = draws_of(drawings, with_replacement=False)
    row = torch.from_numpy(q[np.zeros(draws.forest.num_nodes + len(drawings), np.int64)])
    trees = SampledTrees.of(draws, row, row)
    assert trees.widths == (2, 2, 0)
    tokens = trees.token_ids[trees.children[trees.roots]]
    assert tokens.tolist() == [[path[-1] for path in d.draws[:2]] for d in drawings]


@pytest.mark.parametrize("rule", list(SAMPLED_RULES))
def test_no_rule_waits_for_the_device(rule: str) -> None:
    """On the meta device tensors have no values: whoever asks for one, or for a shape that depends
    on one, fails."""
    rng = np.random.default_rng(5)
    drawn = [random_tree(rng, 4, 1 if rule == "block" else 3) for _ in range(6)]
    rows = sum(len(tree) + 1 for tree, _ in drawn)
    meta = torch.device("meta")
    trees = SampledTrees.of(batch_of(drawn), laws(rng, rows).to(meta), laws(rng, rows).to(meta))
    chooser = CounterChooser(np.arange(6), np.arange(6), meta)
    walked = SAMPLED_RULES[rule](trees, chooser).drawn(trees)
    assert walked.shape == (rows,)
    # The control: to look at a value is an error here.
    with pytest.raises(RuntimeError):
        walked.tolist()
