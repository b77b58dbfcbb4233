"""What a drafter is told for one step: the bounds of the trees and the prices of everything."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec
import numpy as np

from smart_serve.config import Ablation
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.tree import FloatArray


class GrowthPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that growing the trees of one step needs besides the drafter itself.

    It is sent with each step, so that a drafter keeps no state of the controller: the prices are
    a few hundred bytes.
    """

    policy: str
    max_nodes: int
    """Draft nodes of the step, over all trees."""
    max_depth: int
    top_k: int
    """Children of one node that are looked at."""
    nodes_per_tree: int | None = None
    """Fixed tree size of the likelihood-maximising policies."""
    shape: tuple[tuple[int, ...], ...] = ()
    """Of a static tree: paths of child ranks."""
    verify_knots: tuple[int, ...] = (0,)
    """Numbers of draft nodes (over the batch) at which `verify_knot_ms` is known."""
    verify_knot_ms: tuple[float, ...] = (1.0,)
    """Target forward with that many draft nodes beside the roots, at this batch and context."""
    draft_layer: Curve = Curve((1.0,), (0.0,))
    """One layer of drafting, by rows."""
    wire_ms: float = 0.0
    """What else the step pays for speculating: the hop to the drafter, the controller."""
    calibration: tuple[tuple[float, ...], ...] = ()
    """Per depth, acceptance at evenly spaced confidences 0..1; empty: α-damped confidence."""
    is_probe: bool = False
    """Verify at least one node per tree: what is never verified is never learnt of."""
    is_watched: bool = True
    """Tell also what the trees say of the drafter (the profile in `Growth`)."""
    terminal_tokens: tuple[int, ...] = ()
    """Tokens that end a sequence: worth verifying, never worth expanding."""
    ablation: Ablation | None = None
    """What `smart` is to do without, in a benchmark."""
    child_mass: tuple[float, ...] = ()
    """Per depth, the share of a node's probability that its best child keeps (running estimate)."""

    draw_seeds: tuple[int, ...] = ()
    """Per tree, of this step's draws, for policies that draw."""
    temperatures: tuple[float, ...] = ()
    """Per tree, what the drafter's distribution is drawn at."""
    root_features: tuple[tuple[float, ...], ...] = ()
    """Per tree, for the selector; see `smart_serve.speculation.selector`."""
    traced: bool = False
    """Also tell the best candidates that are not to be verified: somebody looks at the trees."""

    overlaps: bool = False
    """It is for half of the batch, whose trees are drafted while the other half is verified."""

    def of_trees(self, places: Sequence[int]) -> GrowthPlan:
        """The plan for these of its trees alone."""
        if len(places) == len(self.draw_seeds) or not self.draw_seeds:
            return self
        return msgspec.structs.replace(
            self,
            draw_seeds=tuple(self.draw_seeds[place] for place in places),
            temperatures=tuple(self.temperatures[place] for place in places),
            root_features=tuple(self.root_features[i] for i in places if self.root_features),
        )

    def step_ms(self, draft_ms: FloatArray | float, verify_ms: FloatArray) -> FloatArray:
        """A step of this drafting and that verification, the hop and host work within them."""
        return np.maximum(draft_ms, verify_ms) if self.overlaps else draft_ms + verify_ms

    def verify_ms(self, num_nodes: int) -> FloatArray:
        """Target cost with 0..num_nodes draft nodes. [num_nodes + 1], not to be written to."""
        return _table(tuple(map(float, self.verify_knots)), self.verify_knot_ms, num_nodes)

    def draft_ms(self, num_rows: int) -> FloatArray:
        """One layer of drafting with 0..num_rows rows, or some more. Not to be written to."""
        return _table(self.draft_layer.x, self.draft_layer.y, 1 << num_rows.bit_length())


@functools.lru_cache(maxsize=32)
def _table(x: tuple[float, ...], y: tuple[float, ...], last: int) -> FloatArray:
    """A curve at 0..last. Kept, since a plan's prices stand for some steps."""
    return Curve(x, y).at(np.arange(last + 1, dtype=np.float64))
