"""The exact law of a verification rule: every draft tree that can be drawn, every decision that the
rule can make, and every way the target goes on, each with its probability.

Vocabulary of 3, texts of 3 tokens. Laws are tables by context, the contexts in the order (), 0, 1,
2, 00, 01, …
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from smart_serve.speculation.tree import Forest
from smart_serve.verification.chooser import Chooser
from smart_serve.verification.sampled_trees import Draws, SampledTrees, Verdict

VOCAB, LENGTH = 3, 3
FIRST_CONTEXT = (0, 1, 4, 13)
"""Of each length."""
Law = np.ndarray  # [13, VOCAB]
Path = tuple[int, ...]
Rule = Callable[[SampledTrees, Chooser], Verdict]


def index_of(context: Path) -> int:
    """In the table, and among all texts of this length after `FIRST_CONTEXT`."""
    return FIRST_CONTEXT[len(context)] + int(sum(t * VOCAB**i for i, t in enumerate(context[::-1])))


def random_law(rng: np.random.Generator, share_of_zeros: float) -> Law:
    law = rng.dirichlet(np.full(VOCAB, 0.7), FIRST_CONTEXT[-1])
    zero = rng.random(law.shape) < share_of_zeros
    zero[np.arange(len(law)), rng.integers(0, VOCAB, len(law))] = False
    law = np.where(zero, 0.0, law)
    return law / law.sum(axis=1, keepdims=True)


def random_pairs(count: int = 20) -> list[tuple[Law, Law]]:
    """(p, q) with no zeros, zeros in p, in q, and in both, in turn."""
    rng = np.random.default_rng(7)
    shares = ((0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.4, 0.4))
    return [tuple(random_law(rng, s) for s in shares[i % 4]) for i in range(count)]


# ---- what can be drawn


@dataclass(frozen=True)
class Drawing:
    """One outcome of drafting: the paths of all draws, parents first, siblings in order."""

    prob: float
    draws: tuple[Path, ...]


Drawer = Callable[[Law], Iterator[Drawing]]


def delayed(num_paths: int, trunk: int, branch: int) -> Drawer:
    """A trunk of `trunk` tokens, then `num_paths` independent branches of `branch` tokens."""

    def drawer(q: Law) -> Iterator[Drawing]:
        for tokens in itertools.product(range(VOCAB), repeat=trunk + num_paths * branch):
            head, tails = tokens[:trunk], tokens[trunk:]
            paths = [
                (*head, *tails[k * branch : (k + 1) * branch]) for k in range(num_paths)
            ]  # fmt: skip
            prefixes = [head[: i + 1] for i in range(trunk)]
            prefixes += [p[: trunk + i + 1] for i in range(branch) for p in paths]
            prob = np.prod([q[index_of(p[:-1]), p[-1]] for p in prefixes])
            if prob > 0:
                yield Drawing(float(prob), tuple(prefixes))

    return drawer


def without_replacement(num_children: int, depth: int) -> Drawer:
    """Every node of depth < `depth` has `num_children` different children, if q has as many."""

    def drawer(q: Law, root: Path = ()) -> Iterator[Drawing]:
        if len(root) == depth:
            yield Drawing(1.0, ())
            return
        law = q[index_of(root)]
        for order in itertools.permutations(
            np.flatnonzero(law).tolist(), min(num_children, int((law > 0).sum()))
        ):
            prob, left = 1.0, 1.0
            for token in order:
                prob *= law[token] / left
                left -= law[token]
            below = [list(drawer(q, (*root, token))) for token in order]
            for parts in itertools.product(*below):
                draws = [(*root, token) for token in order] + [d for p in parts for d in p.draws]
                yield Drawing(prob * float(np.prod([p.prob for p in parts])), tuple(draws))

    return drawer


# ---- drafting outcomes as the rules see them


def draws_of(drawings: list[Drawing], *, with_replacement: bool) -> tuple[Draws, list[list[Path]]]:
    """One tree for each drawing, and the path of every node."""
    paths = [list(dict.fromkeys(sorted(d.draws, key=len))) for d in drawings]
    rows = [{path: row for row, path in enumerate(tree, start=1)} for tree in paths]
    nodes = [(path, row) for tree, row in zip(paths, rows, strict=True) for path in tree]
    offsets = np.cumsum([0, *map(len, paths)])
    ones = np.ones(len(nodes))
    forest = Forest(
        offsets=offsets,
        token_ids=np.asarray([path[-1] for path, _ in nodes], np.int64),
        parents=np.asarray([row.get(path[:-1], 0) for path, row in nodes], np.int64),
        depths=np.asarray([len(path) for path, _ in nodes], np.int64),
        confidences=ones,
        path_probs=ones,
    )
    order = [
        offset + row[draw] - 1
        for offset, row, drawing in zip(offsets, rows, drawings, strict=False)
        for draw in drawing.draws
    ]
    return Draws(forest, np.asarray(order, np.int64), with_replacement), paths


def repeated(draws: Draws, times: int) -> Draws:
    forest = draws.forest
    sizes = np.tile(forest.sizes, times)
    shift = np.repeat(np.arange(times) * forest.num_nodes, len(draws.nodes))
    columns = {
        name: np.tile(getattr(forest, name), times)
        for name in ("token_ids", "parents", "depths", "confidences", "path_probs")
    }
    many = Forest(offsets=np.concatenate(([0], np.cumsum(sizes))), **columns)
    return Draws(many, np.tile(draws.nodes, times) + shift, draws.with_replacement)


# ---- what a rule can decide


class Counting:
    """Notes how many outcomes each decision has."""

    def __init__(self) -> None:
        self.outcomes: list[int] = []

    def bernoulli(self, probs: torch.Tensor, number: int) -> torch.Tensor:
        self.outcomes.append(2)
        return torch.zeros_like(probs, dtype=torch.bool)

    def categorical(self, weights: torch.Tensor, number: int) -> torch.Tensor:
        self.outcomes.append(VOCAB)
        return torch.zeros(len(weights), dtype=torch.int64)


class Enumerating:
    """Every tree comes once for each combination of outcomes; `probs` is each combination's."""

    def __init__(self, outcomes: list[int], num_trees: int) -> None:
        combinations = itertools.product(*map(range, outcomes))
        self._script = torch.tensor(list(combinations)).repeat_interleave(num_trees, dim=0)
        self._next = 0
        self.probs = torch.ones(len(self._script), dtype=torch.float64)

    def _outcome(self) -> torch.Tensor:
        self._next += 1
        return self._script[:, self._next - 1]

    def bernoulli(self, probs: torch.Tensor, number: int) -> torch.Tensor:
        is_true = self._outcome() == 1
        self.probs *= torch.where(is_true, probs, 1.0 - probs).clamp(0.0, 1.0)
        return is_true

    def categorical(self, weights: torch.Tensor, number: int) -> torch.Tensor:
        token = self._outcome()
        probs = weights / weights.sum(dim=1, keepdim=True)
        self.probs *= probs.gather(1, token.unsqueeze(1)).squeeze(1)
        return token


@dataclass(frozen=True)
class Outcome:
    """Law of the first three tokens [27], and how many drafted tokens are accepted on average."""

    law: np.ndarray
    accepted: float


def outcome(
    rule: Rule,
    p: Law,
    q: Law,
    drawings: list[Drawing],
    *,
    with_replacement: bool,
    rule_p: Law | None = None,
) -> Outcome:
    """`rule_p`: the target's law as the rule is told it, where that is a lie."""
    draws, paths = draws_of(drawings, with_replacement=with_replacement)
    contexts = np.asarray([index_of(path) for tree in paths for path in [(), *tree]])

    def trees(times: int) -> SampledTrees:
        told = np.tile((p if rule_p is None else rule_p)[contexts], (times, 1))
        drafted = np.tile(q[contexts], (times, 1))
        return SampledTrees.of(
            repeated(draws, times), torch.from_numpy(told), torch.from_numpy(drafted)
        )

    counting = Counting()
    rule(trees(1), counting)
    times = int(np.prod(counting.outcomes))
    enumerating = Enumerating(counting.outcomes, len(drawings))
    all_trees = trees(times)
    verdict = rule(all_trees, enumerating)
    probs = enumerating.probs.numpy() * np.tile([d.prob for d in drawings], times)
    rows = all_trees.rows
    last, bonus = verdict.last.numpy(), verdict.bonus.numpy()
    reached = np.tile(contexts, times)[last]
    lengths = rows.depths[last]
    law = np.zeros(VOCAB**LENGTH)
    for length in range(LENGTH):
        # What cannot be decided is enumerated, too: a child that is not there, accepted.
        here = (lengths == length) & (probs > 0)
        texts = (reached[here] - FIRST_CONTEXT[length]) * VOCAB + bonus[here]
        mass = np.bincount(texts, probs[here], minlength=VOCAB ** (length + 1))
        for more in range(length + 1, LENGTH):
            table = p[FIRST_CONTEXT[more] : FIRST_CONTEXT[more + 1]]
            mass = (mass[:, None] * table).reshape(-1)
        law += mass
    return Outcome(law, float((probs * lengths).sum()))


def target_law(p: Law) -> np.ndarray:
    """Of the first three tokens [27]."""
    mass = np.ones(1)
    for length in range(LENGTH):
        mass = (mass[:, None] * p[FIRST_CONTEXT[length] : FIRST_CONTEXT[length + 1]]).reshape(-1)
    return mass
