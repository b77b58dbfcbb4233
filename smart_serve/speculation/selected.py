"""Policy `selector`: a delayed tree for each sequence, chosen at its root."""

from __future__ import annotations

import numpy as np

from smart_serve.speculation.growth import Layer
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.sampled import SampledGrower
from smart_serve.speculation.selector import DEFAULT_ACTION, ShapeChooser, features_of
from smart_serve.speculation.tree import FloatArray, IntArray


class SelectedGrower(SampledGrower):
    """The choice is made when the root's distribution is known, before anything is drawn from it;
    without a selector every tree is the default one."""

    def __init__(self, plan: GrowthPlan, num_trees: int, selector: ShapeChooser | None) -> None:
        super().__init__(plan, num_trees)
        self._selector = selector
        self.set_shapes(np.tile(DEFAULT_ACTION, (num_trees, 1)))

    def places(self, layer: Layer, laws: FloatArray) -> IntArray:
        if not self.drawn and self._selector is not None:
            self.set_shapes(self._selector.choose(features_of(self.plan, laws)))
        return super().places(layer, laws)
