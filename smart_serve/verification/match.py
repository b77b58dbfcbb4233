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
import torch

from kernels.to_device import to_device
from kernels.verify import Walk, verify
from smart_serve.speculation.tree import Forest


def match(forest: Forest, drawn: torch.Tensor) -> Walk:
    """Walk all trees at once, where `drawn` [M + B] is: the target's token after each tree's root
    and then after its nodes."""
    if forest.num_nodes == 0:
        nowhere = drawn.new_zeros(len(drawn), 0)
        return Walk(nowhere, nowhere.sum(dim=1), drawn)
    numbers = np.concatenate((forest.offsets, forest.parents, forest.token_ids))
    nodes = forest.num_nodes
    parts = to_device(numbers, drawn.device).split((forest.num_trees + 1, nodes, nodes))
    return verify(
        drawn,
        *parts,
        max_nodes=int(forest.sizes.max(initial=0)),
        max_depth=int(forest.depths.max(initial=0)),
    )
