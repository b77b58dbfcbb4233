"""Sample-and-match verification of deterministic draft trees.

At every node the target's own next token y is drawn from p_target(· | path). If y is a child of the
node, the walk goes there; otherwise y is emitted as the bonus token and the walk ends. The output
follows p_target exactly, whatever the tree, and its expected length is 1 + Σ_u P_target(u), which
no lossless rule can exceed on a deterministic tree. At temperature 0 this is longest match.

As the draw at absolute position t uses the one uniform keyed by (seed, t), all nodes of a depth
share it, and the emitted tokens are those that plain decoding would have drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smart_serve.speculation.tree import Forest

Ints = NDArray[np.int64]


def match(forest: Forest, tree: int, drawn: Ints) -> tuple[list[int], int]:
    """Walk tree number `tree`; `drawn` [1 + n] is the target's token after the root and each node.

    Returns (rows of the accepted nodes within the tree, from the root down; the bonus token).
    """
    begin, end = int(forest.offsets[tree]), int(forest.offsets[tree + 1])
    if begin == end:
        return [], int(drawn[0])
    children = {
        (int(parent), int(token)): row
        for row, (parent, token) in enumerate(
            zip(forest.parents[begin:end], forest.token_ids[begin:end], strict=True), start=1
        )
    }
    accepted: list[int] = []
    row, token = 0, int(drawn[0])
    while (child := children.get((row, token))) is not None:
        accepted.append(child)
        row, token = child, int(drawn[child])
    return accepted, token
