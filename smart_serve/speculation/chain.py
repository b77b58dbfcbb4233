"""Policy `chain:k`: one path of k tokens per sequence, always, as most engines speculate."""

from __future__ import annotations

from smart_serve.speculation.growth import Layer, TreeGrower, top_per_tree
from smart_serve.speculation.tree import IntArray


class ChainGrower(TreeGrower):
    """The most likely child of the newest node; `plan.max_depth` is k and `plan.top_k` is 1."""

    def expand(self, layer: Layer) -> IntArray:
        return top_per_tree(layer.trees, layer.draft_probs, 1)

    def choose(self) -> IntArray:
        return top_per_tree(self.column("trees"), self.column("draft_probs"), self.plan.max_depth)
