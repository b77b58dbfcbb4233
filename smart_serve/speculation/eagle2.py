"""Policy `eagle2`: the likelihood-maximising tree of EAGLE-2 (arXiv 2406.16858, section 4).

Every layer expands the top_k nodes of a tree by the product of draft probabilities; at the end the
best N nodes over all layers are verified, whatever the batch and whatever they cost.
"""

from __future__ import annotations

from smart_serve.speculation.growth import Layer, TreeGrower, top_per_tree
from smart_serve.speculation.tree import IntArray


class Eagle2Grower(TreeGrower):
    """`plan.top_k` expanded nodes per tree and layer, `plan.nodes_per_tree` verified."""

    def expand(self, layer: Layer) -> IntArray:
        return top_per_tree(layer.trees, layer.draft_probs, self.plan.top_k)

    def choose(self) -> IntArray:
        nodes = self.plan.nodes_per_tree
        assert nodes is not None
        # A child's product never exceeds its parent's, and ties go to the earlier (shallower) id,
        # so the best N are closed under parents.
        return top_per_tree(self.column("trees"), self.column("draft_probs"), nodes)
