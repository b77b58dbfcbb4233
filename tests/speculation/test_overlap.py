"""Drafting for one half of a batch while the other half is verified: where it pays."""

from __future__ import annotations

import numpy as np
import pytest
from growing import plan_of

from smart_serve.config import SpeculationConfig
from smart_serve.speculation.controller import SpeculationController
from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.overlap import (
    FIRST_STEPS,
    LOOK_EVERY,
    Overlap,
    Phases,
    TreeSizes,
    overlap_gain,
)
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.policies import make_grower
from smart_serve.speculation.step_observation import StepObservation
from smart_serve.speculation.tree import Forest

BATCH = 16
LAYER = Curve((1.0, 512.0), (0.5, 0.6))


def plan_for(batch: int, wire_ms: float, floor_ms: float, token_ms: float) -> GrowthPlan:
    """A target that takes `floor_ms` for any step and `token_ms` for each token of it."""
    ends = tuple(floor_ms + token_ms * (batch + nodes) for nodes in (0, 512))
    return plan_of(wire_ms=wire_ms, draft_layer=LAYER, verify_knots=(0, 512), verify_knot_ms=ends)


def observed(
    batch: int = BATCH, nodes: int = 4, layers: int = 3, step_ms: float = 25.0
) -> StepObservation:
    """A step of chains."""
    offsets = np.arange(batch + 1) * nodes
    rows = np.tile(np.arange(nodes), batch)
    sure = np.full(batch * nodes, 0.98)
    forest = Forest(offsets, rows, rows, rows + 1, sure, sure ** (rows + 1))
    return StepObservation(
        "smart", batch, 64.0, forest, np.ones(batch * nodes, np.bool_), Growth(forest, (), ()),
        (batch, *[batch] * (layers - 1)), (0.5,) * layers, 20.0, step_ms,
    )  # fmt: skip


FAR = tuple(plan_for(batch, 18.0, 0.0, 0.5) for batch in (BATCH, BATCH // 2))
FAR_MS, FAR_HALF_MS = 59.5, 20.0
"""What steps of chains of four take there: 18 + 1.5 + 40, and max(18 + 1.5, 20)."""


def gain_of(wire_ms: float, floor_ms: float, token_ms: float, batch: int = BATCH) -> float:
    """After some steps of chains of four."""
    overlap = Overlap()
    for _ in range(FIRST_STEPS):
        overlap.observe(observed(batch))
    halves = -(-batch // 2)
    whole, half = (plan_for(b, wire_ms, floor_ms, token_ms) for b in (batch, halves))
    return overlap.gain(whole, half, batch)


def test_the_gain_is_that_of_the_schedule() -> None:
    """Against a clock that runs both, step by step."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        draft, verify, half_draft, half_verify = rng.uniform(0.1, 30.0, 4)
        verified_at = [0.0]
        drafted_at = half_draft  # the first half's trees
        for _ in range(200):
            begin = max(verified_at[-1], drafted_at)
            # The other half is asked for as soon as these trees are there.
            drafted_at = begin + half_draft
            verified_at.append(begin + half_verify)
        overlapped = 2.0 * (verified_at[-1] - verified_at[100]) / (len(verified_at) - 101)
        whole, half = Phases(draft, verify), Phases(half_draft, half_verify)
        assert overlap_gain(whole, half) == pytest.approx((draft + verify) / overlapped)


def test_it_pays_where_the_hop_is_long_and_a_half_is_cheaper_than_all() -> None:
    # 80 tokens at 0.5 ms: 40 ms for all, 20 ms for a half; 20 ms of hop are hidden behind those.
    assert gain_of(wire_ms=18.0, floor_ms=0.0, token_ms=0.5) > 1.4


@pytest.mark.parametrize(
    ("wire_ms", "floor_ms", "token_ms"),
    [
        (0.1, 0.0, 0.5),  # a drafter that is near
        (18.0, 40.0, 0.0),  # a target that reads its weights for every half
        (80.0, 0.0, 0.5),  # a hop that takes longer than all else: each half pays it
    ],
)
def test_it_does_not_pay_otherwise(wire_ms: float, floor_ms: float, token_ms: float) -> None:
    assert gain_of(wire_ms, floor_ms, token_ms) == 1.0


def test_nothing_is_decided_before_trees_are_known() -> None:
    overlap = Overlap()
    for _ in range(FIRST_STEPS - 1):
        overlap.observe(observed(step_ms=FAR_MS))
        assert overlap.gain(*FAR, BATCH) == 1.0
    overlap.observe(observed(step_ms=FAR_MS))
    assert overlap.gain(*FAR, BATCH) > 1.0
    overlap.reset()
    assert overlap.gain(*FAR, BATCH) == 1.0


def test_it_looks_now_and_then_and_does_not_flap() -> None:
    overlap = Overlap()
    for _ in range(FIRST_STEPS):
        overlap.observe(observed())
    gains = [overlap.gain(*FAR, BATCH) for _ in range(3 * LOOK_EVERY)]
    assert gains.count(1.0) == 3
    # Where it brings 2 %, what was done before is done again.
    near = next(
        pair
        for wire in np.arange(0.0, 18.0, 0.05)
        if 1.01 < overlap_gain(*_phases(pair := _pair(wire))) < 1.03
    )
    assert overlap.gain(*near, 16) > 1.0
    assert overlap.gain(*_pair(0.0), 16) == 1.0
    assert overlap.gain(*near, 16) == 1.0


def overlapped(step_ms: float) -> StepObservation:
    half = BATCH // 2
    return _took(observed(half, step_ms=step_ms), left_out=half, turnaround_ms=19.5)


@pytest.mark.parametrize(("slower", "pays"), [(1.0, True), (1.3, True), (1.7, False)])
def test_what_overlapped_steps_take_counts(slower: float, pays: bool) -> None:
    """The schedule alone would give 59.5 / 40, whatever the steps take."""
    overlap = Overlap()
    for _ in range(FIRST_STEPS):
        overlap.observe(observed(step_ms=FAR_MS))
    assert overlap.gain(*FAR, BATCH) == pytest.approx(FAR_MS / (2 * FAR_HALF_MS), rel=0.01)
    for _ in range(50):
        overlap.observe(overlapped(slower * FAR_HALF_MS))
    gain = overlap.gain(*FAR, BATCH)
    assert (gain > 1.0) == pays
    if pays:
        assert gain == pytest.approx(FAR_MS / (2 * slower * FAR_HALF_MS), rel=0.02)
        return
    # It may have been a bad time: after a while it is tried again.
    steps = next(n for n in range(2000) if overlap.gain(*FAR, BATCH) > 1.0)
    assert steps > 100
    # A machine on which everything is slower tells nothing about overlapping.
    for _ in range(50):
        overlap.observe(overlapped(slower * FAR_HALF_MS))
        overlap.observe(observed(step_ms=slower * FAR_MS))
    assert overlap.gain(*FAR, BATCH) > 1.2


def test_steps_that_share_their_processors_do_not_move_the_prices() -> None:
    controller = far_controller()
    before = controller.prices.plain_step_ms(MANY, 64.0), controller.prices.draft_curve()
    half = observed(MANY // 2, step_ms=90.0)
    crowded = _took(half, left_out=MANY // 2, turnaround_ms=60.0, verify_ms=80.0)
    slow = _took(crowded, layer_ms=(20.0,) * 3)
    for _ in range(50):
        controller.observe(slow)
    assert (controller.prices.plain_step_ms(MANY, 64.0), controller.prices.draft_curve()) == before
    # The control: the same step by itself.
    for _ in range(50):
        controller.observe(_took(slow, left_out=0, turnaround_ms=None))
    assert controller.prices.plain_step_ms(MANY, 64.0) > 1.5 * before[0]


def _pair(wire_ms: float) -> tuple[GrowthPlan, GrowthPlan]:
    return plan_for(16, wire_ms, 3.0, 0.5), plan_for(8, wire_ms, 3.0, 0.5)


def _phases(pair: tuple[GrowthPlan, GrowthPlan]) -> tuple[Phases, Phases]:
    sizes = TreeSizes(1.0, 2.0, 1.0, 4.0)
    return sizes.phases(pair[0], 16), sizes.phases(pair[1], 8)


def test_a_prompt_that_is_caught_up_with_does_not_count_as_every_steps() -> None:
    plan = plan_for(BATCH, 1.0, 0.0, 0.5)
    usual, prompts = Overlap(), Overlap()
    for _ in range(FIRST_STEPS):
        usual.observe(observed())
        seen = observed()
        prompts.observe(_took(seen, layer_rows=(3000, *seen.layer_rows[1:])))
    with_prompts, without = (one._sizes.phases(plan, BATCH) for one in (prompts, usual))
    assert with_prompts.draft_ms < 2 * without.draft_ms


def test_layers_are_free_while_the_other_half_is_verified() -> None:
    """With what they cost beside a verification, the trees become deeper."""

    def depth(overlaps: bool) -> int:
        plan = plan_of(
            max_depth=8,
            top_k=1,
            wire_ms=2.0,
            draft_layer=Curve((1.0, 64.0), (3.0, 3.1)),
            verify_knots=(0, 512),
            verify_knot_ms=(20.0, 25.0),
            overlaps=overlaps,
        )
        grower = make_grower(plan, 4)
        rows, layers = 4, 0
        while rows:
            layers += 1
            rows = len(grower.add_layer(np.zeros((rows, 1), int), np.log(np.full((rows, 1), 0.5))))
        return layers

    assert depth(overlaps=True) > depth(overlaps=False)


MANY = 64
"""Sequences of the far controller."""


def far_controller(policy: str = "eagle2") -> SpeculationController:
    """A target that takes 10 ms, and 0.1 ms for each token, after some steps with a hop of 20 ms
    and drafts that were all right."""
    config = SpeculationConfig(policy=policy, eagle2_nodes=4, eagle2_depth=3)
    costs = CostTable((1,), (64,), ((Curve((0.0, 1024.0), (10.0, 112.4)),),))
    controller = SpeculationController(config, costs, LAYER)
    for _ in range(30):
        assert controller.plan(policy, MANY, 64.0, MANY, may_overlap=True) is not None
        seen = observed(MANY)
        took = 10.0 + 0.1 * seen.num_tokens
        sure = tuple((0.98**depth, 0.0, 0.0, 0.0) for depth in range(1, 4))
        seen = _took(
            seen,
            growth=Growth(seen.forest, sure, (0.98,) * 3),
            verify_ms=took,
            step_ms=took + sum(seen.layer_ms) + 20.0,
        )
        controller.observe(seen)
    return controller


def _took(seen: StepObservation, **changes: object) -> StepObservation:
    fields = {name: getattr(seen, name) for name in StepObservation.__slots__}
    return StepObservation(**{**fields, **changes})


@pytest.mark.parametrize("policy", ["eagle2", "smart"])
def test_the_controller_plans_for_a_half_where_that_pays(policy: str) -> None:
    controller = far_controller(policy)
    plan = controller.plan(policy, MANY, 128.0, MANY, may_overlap=True)
    assert plan is not None
    assert plan.overlaps
    # It is priced as a half.
    assert plan.verify_knot_ms[0] == pytest.approx(10.0 + 0.1 * MANY / 2, rel=0.05)
    # The control: a drafter that cannot be asked ahead.
    alone = controller.plan(policy, MANY, 160.0, MANY)
    assert alone is not None
    assert not alone.overlaps
    assert alone.verify_knot_ms[0] == pytest.approx(10.0 + 0.1 * MANY, rel=0.05)


def test_a_hop_is_learnt_from_answers_that_were_waited_for() -> None:
    controller = far_controller()
    before = controller.prices.wire_ms
    seen = observed(MANY // 2)
    hidden = _took(seen, left_out=MANY // 2, propose_ms=0.1, turnaround_ms=60.0, step_ms=22.0)
    for _ in range(50):
        controller.observe(hidden)
    # It was there already: it says nothing of a hop that is longer.
    assert controller.prices.wire_ms == pytest.approx(before, rel=0.05)
    for _ in range(100):
        controller.observe(_took(hidden, propose_ms=40.0, step_ms=62.0))
    assert controller.prices.wire_ms > 2 * before
    # What was there after 5 ms took no longer than that.
    for _ in range(200):
        controller.observe(_took(hidden, turnaround_ms=5.0))
    assert controller.prices.wire_ms < 6.0
