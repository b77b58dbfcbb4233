"""Policies by name."""

from __future__ import annotations

from smart_serve.config import sampled_shape
from smart_serve.speculation.ablations import ablated_grower
from smart_serve.speculation.chain import ChainGrower
from smart_serve.speculation.eagle2 import Eagle2Grower
from smart_serve.speculation.growth import TreeGrower
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.sampled import SampledGrower
from smart_serve.speculation.selected import SelectedGrower
from smart_serve.speculation.selector import ShapeChooser
from smart_serve.speculation.smart import SmartGrower
from smart_serve.speculation.smart_drawn import SmartDrawnGrower
from smart_serve.speculation.smart_paper import PaperGrower
from smart_serve.speculation.static_tree import StaticGrower, is_static


def make_grower(
    plan: GrowthPlan, num_trees: int, selector: ShapeChooser | None = None
) -> TreeGrower:
    """The grower of `plan.policy` for one step of `num_trees` sequences; the drafter's `selector`
    is for the policy of that name."""
    if plan.policy == "smart":
        grower = SmartGrower if plan.ablation is None else ablated_grower(plan.ablation)
        return grower(plan, num_trees)
    if plan.policy == "smart-paper":
        return PaperGrower(plan, num_trees)
    if plan.policy == "eagle2" or plan.policy.startswith("eagle2:"):
        return Eagle2Grower(plan, num_trees)
    if plan.policy == "adaptive-chain" or plan.policy.startswith("chain:"):
        return ChainGrower(plan, num_trees)
    if plan.policy == "smart-drawn":
        return SmartDrawnGrower(plan, num_trees)
    if plan.policy == "selector":
        return SelectedGrower(plan, num_trees, selector)
    if sampled_shape(plan.policy) is not None:
        return SampledGrower(plan, num_trees)
    if is_static(plan.policy):
        return StaticGrower(plan, num_trees)
    raise ValueError(f"policy '{plan.policy}' grows no trees")
