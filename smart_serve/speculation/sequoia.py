"""The best static tree for a drafter of known worth, by Sequoia's dynamic program.

With p_r the chance that the child of rank r is the target's token, the same at every node
(Chen et al., "Sequoia", arXiv 2402.12374, section 3.1), a tree of n nodes and depth d at most has

    T(n, d) = max over its children r of  1 + Σ_r p_r T(n_r, d − 1),   Σ_r n_r = n − 1

expected tokens, the bonus token counted. Its shape is then the one whose tokens per time are most:

    max over (n, d) of  T(n, d) / (d · draft_layer + verify(n))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smart_serve.speculation.static_tree import Shape
from smart_serve.speculation.tree import FloatArray, IntArray


def best_static_tree(
    acceptance: Sequence[float], verify_ms: FloatArray, layer_ms: float, max_depth: int
) -> Shape:
    """Paths of the best tree; empty: plain decoding is better than every tree.

    `acceptance` [k] by rank, best first; `verify_ms` [n + 1] with 0..n draft nodes; `layer_ms` of
    one drafting pass.
    """
    program = _Program(acceptance, len(verify_ms), max_depth)
    rates = program.tokens / (np.arange(max_depth + 1)[:, None] * layer_ms + verify_ms)
    depth, nodes = np.unravel_index(int(rates.argmax()), rates.shape)
    return tuple(sorted(program.paths(int(depth), int(nodes) + 1), key=lambda p: (len(p), p)))


def expected_tokens(shape: Shape, acceptance: Sequence[float]) -> float:
    """Of one step with that tree, the bonus token counted."""
    return 1.0 + sum(float(np.prod([acceptance[rank] for rank in path])) for path in shape)


class _Program:
    """Tables over (depth, nodes), nodes counting the root."""

    def __init__(self, acceptance: Sequence[float], max_nodes: int, max_depth: int) -> None:
        self._acceptance = acceptance
        # [depth][rank][nodes]: best with the first `rank` children; nodes given to the last one.
        self._given: list[list[IntArray]] = [[]]
        best = np.full(max_nodes + 1, -np.inf)
        best[1] = 1.0
        self._best: list[FloatArray] = [best]
        for _ in range(max_depth):
            self._add_depth()

    @property
    def tokens(self) -> FloatArray:
        """T by (depth at most, draft nodes). [max_depth + 1, max_nodes]"""
        return np.stack(self._best)[:, 1:]

    def _add_depth(self) -> None:
        below, best = self._best[-1], self._best[0]
        given = []
        for chance in self._acceptance:
            best, gave = _with_child(best, chance * below)
            given.append(gave)
        self._given.append(given)
        self._best.append(best)

    def paths(self, depth: int, nodes: int) -> list[tuple[int, ...]]:
        """Of the best tree of exactly `nodes` nodes and that depth at most, without its root."""
        if depth == 0:
            return []
        paths: list[tuple[int, ...]] = []
        for rank in reversed(range(len(self._acceptance))):
            size = int(self._given[depth][rank][nodes])
            if size:
                paths.append((rank,))
                paths += [(rank, *path) for path in self.paths(depth - 1, size)]
                nodes -= size
        return paths


def _with_child(before: FloatArray, child: FloatArray) -> tuple[FloatArray, IntArray]:
    """Best of each size with one more child, and that child's size. [nodes + 1] each"""
    best, given = before.copy(), np.zeros(len(before), np.int64)
    for size in range(1, len(before)):
        values = before[: len(before) - size] + child[size]
        better = values > best[size:]
        best[size:][better] = values[better]
        given[size:][better] = size
    return best, given
