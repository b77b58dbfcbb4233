"""The profile takes what any policy's trees teach, however deep they are."""

from __future__ import annotations

import pytest
from growing import grow, plan_of, steady

from smart_serve.speculation.profile import DrafterProfile

DEEPEST = 8


@pytest.mark.parametrize("depth", [1, DEEPEST, DEEPEST + 1, 16])
def test_trees_deeper_than_the_profile_teach_as_far_as_it_reaches(depth: int) -> None:
    plan = plan_of(f"chain:{depth}", max_depth=depth, nodes_per_tree=depth, top_k=1)
    growth = grow(plan, 1, steady(0.5)).finish()
    assert len(growth.child_mass) == depth
    profile = DrafterProfile(DEEPEST)
    for _ in range(100):
        profile.observe(growth)
    assert len(profile.child_mass) == DEEPEST
    assert profile.child_mass[: min(depth, DEEPEST)] == pytest.approx(
        [0.5] * min(depth, DEEPEST), rel=0.01
    )
