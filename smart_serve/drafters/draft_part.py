"""One question's part of a draft that answers several at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from smart_serve.drafters.draft_tree import DraftTree
from smart_serve.drafters.protocol import DraftBatch, Proposal
from smart_serve.paging.rows import Ints
from smart_serve.speculation.growth import TreeGrower
from smart_serve.speculation.tree import FloatArray


@dataclass(slots=True)
class DraftPart:
    """Its trees, and what its own plan says of them. What fails in here fails this part alone."""

    number: int
    """Of the question, among those that are answered at once."""
    batch: DraftBatch
    places: tuple[int, ...]
    """The batch's inputs that the trees are of; the others are unknown."""
    trees: list[DraftTree]
    grower: TreeGrower
    num_frontier: int
    """Its nodes whose children come next; 0: the trees are grown."""
    failure: Exception | None = None
    layer_ms: list[float] = field(default_factory=list)
    layer_rows: list[int] = field(default_factory=list)

    def add_layer(self, token_ids: Ints, log_probs: FloatArray) -> Ints:
        """Children of its frontier [F, k], best first, of which it looks at as many as its plan
        says; returns which to expand, as indices into the flattened [F * k]."""
        offered = token_ids.shape[1]
        width = min(self.batch.growth.top_k, offered)
        try:
            chosen = self.grower.add_layer(token_ids[:, :width], log_probs[:, :width])
        except Exception as error:
            self.failure = error
            return token_ids.reshape(-1)[:0]
        places: Ints = chosen // width * offered + chosen % width
        return places

    def end_layer(self, layer_ms: float, num_next: int) -> None:
        """A pass over rows of all parts took so long. It is told as one over this part's own: that
        is what they cost while the drafter is shared."""
        is_first = not self.layer_ms
        catch_up_rows = sum(len(tree.token_ids) for tree in self.trees) if is_first else 0
        self.layer_ms.append(layer_ms)
        self.layer_rows.append(catch_up_rows or self.num_frontier)
        self.num_frontier = num_next

    def proposal(self) -> Proposal:
        """The answer, once the trees are grown. Raises what went wrong."""
        if self.failure is not None:
            raise self.failure
        num_inputs = len(self.batch.inputs)
        growth = self.grower.finish().spread(num_inputs, self.places)
        unknown = tuple(sorted(set(range(num_inputs)).difference(self.places)))
        return Proposal(growth, unknown, tuple(self.layer_ms), tuple(self.layer_rows))

    def rewind(self) -> None:
        """As if its rows had not been run."""
        for tree in self.trees:
            tree.rewind()
