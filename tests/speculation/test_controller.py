"""The controller in a small world with known costs and a drafter of known worth."""

from __future__ import annotations

import time

import numpy as np
import pytest
from growing import grow, steady

from smart_serve.config import SpeculationConfig
from smart_serve.messages import SpeculationPlan
from smart_serve.speculation.controller import TRIALS, SpeculationController
from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.step_observation import StepObservation
from smart_serve.speculation.tree import Forest

CONTEXT = 100.0
LAYER_MS = 0.5


class World:
    """Steps of a batch: what the controller decides is carried out at the true costs."""

    prefill_tokens = 0
    """Prompt rows in every step."""

    def __init__(self, *, node_ms: float = 0.01, slower: float = 1.0, batch: int = 1) -> None:
        table = CostTable((1,), (64,), ((Curve((1.0, 513.0), (10.0, 10.0 + 512 * node_ms)),),))
        self.batch, self.slower, self.table = batch, slower, table
        config = SpeculationConfig(max_depth=4, top_k=3)
        self.controller = SpeculationController(config, table, Curve((1.0,), (LAYER_MS,)))
        self.rng = np.random.default_rng(0)

    def step(self, confidence: float, worth: float) -> Forest | None:
        """One step with a drafter of that confidence, whose best children come true with
        probability `worth`; the forest that was verified, None for a plain step."""
        plan = self.controller.plan("smart", self.batch, CONTEXT, self.batch)
        if plan is None:
            self._observe(Forest.empty(self.batch), np.empty(0, np.bool_), None)
            return None
        grower = grow(plan, self.batch, steady(*[confidence] * self.batch))
        growth = grower.finish()
        forest = growth.forest
        accepted = self._accept(forest, worth)
        self._observe(forest, accepted, growth, len(grower.layers))
        return forest

    def _accept(self, forest: Forest, worth: float) -> np.ndarray:
        accepted = np.zeros(forest.num_nodes, np.bool_)
        starts = np.repeat(forest.offsets[:-1], forest.sizes)
        for node in range(forest.num_nodes):
            parent = int(forest.parents[node])
            is_open = parent == 0 or accepted[starts[node] + parent - 1]
            best = forest.token_ids[node] == 0
            accepted[node] = is_open and best and self.rng.random() < worth
        return accepted

    def _observe(
        self, forest: Forest, accepted: np.ndarray, growth: object, num_layers: int = 0
    ) -> None:
        tokens = np.asarray([float(self.batch + forest.num_nodes + self.prefill_tokens)])
        verify = float(self.table.verify_ms(tokens, self.batch, CONTEXT)[0]) * self.slower
        self.controller.observe(
            StepObservation(
                policy="smart", batch=self.batch, context=CONTEXT, forest=forest,
                accepted=accepted, growth=growth, layer_rows=(self.batch,) * num_layers,
                layer_ms=(LAYER_MS,) * num_layers, verify_ms=verify,
                step_ms=verify + num_layers * LAYER_MS, prefill_tokens=self.prefill_tokens,
            )
        )  # fmt: skip

    def run(self, steps: int, confidence: float, worth: float) -> float:
        """Share of steps that drafted."""
        return sum(self.step(confidence, worth) is not None for _ in range(steps)) / steps


def plan_of(world: World, policy: str = "smart") -> GrowthPlan | None:
    return world.controller.plan(policy, world.batch, CONTEXT, world.batch)


def test_a_useless_drafter_is_given_up() -> None:
    world = World(node_ms=0.2)
    world.run(300, confidence=0.9, worth=0.0)
    assert world.run(600, confidence=0.9, worth=0.0) < 0.03


@pytest.mark.parametrize("prefill_tokens", [2, 500])
def test_a_server_that_prefills_in_every_step_learns_too(prefill_tokens: int) -> None:
    """Under load hardly a step is without: a useless drafter is given up all the same."""
    world = World(node_ms=0.2)
    world.prefill_tokens = prefill_tokens
    world.run(300, confidence=0.9, worth=0.0)
    assert world.run(600, confidence=0.9, worth=0.0) < 0.03


def test_costs_are_learnt_from_steps_with_a_little_prefill() -> None:
    slow, true = World(slower=3.0, batch=4), World(batch=4)
    for world in (slow, true):
        world.prefill_tokens = 4
        world.run(100, confidence=0.9, worth=0.9)
    assert slow.controller.prices.plain_step_ms(
        4, CONTEXT
    ) > 2 * true.controller.prices.plain_step_ms(4, CONTEXT)


def test_a_drafter_priced_on_a_busy_machine_is_kept_once_it_was_tried() -> None:
    world = World()
    world.controller.set_layer_cost(Curve((1.0,), (120 * LAYER_MS,)))
    world.run(TRIALS, confidence=0.9, worth=0.9)
    assert world.run(200, confidence=0.9, worth=0.9) > 0.95


def test_an_unknown_drafter_is_tried_even_where_it_seems_too_dear() -> None:
    """Its price was measured while the machine was busy, say."""
    world = World()
    world.controller.set_layer_cost(Curve((1.0,), (30.0,)))
    assert all(world.step(0.9, 0.9) is not None for _ in range(TRIALS))
    dear = World()
    dear.controller.set_layer_cost(Curve((1.0,), (30.0,)))
    for _ in range(TRIALS + 1):
        dear.controller.plan("smart", 1, CONTEXT, 1)  # Asked, and never answered.
    assert plan_of(dear) is None


def test_a_good_drafter_is_used_in_every_step() -> None:
    world = World()
    assert world.run(200, confidence=0.9, worth=0.9) == 1.0
    assert world.step(0.9, 0.9).num_nodes >= 3


def test_a_drafter_that_becomes_good_is_taken_back() -> None:
    world = World(node_ms=0.2)
    world.run(900, confidence=0.9, worth=0.0)
    assert plan_of(world) is None
    for _ in range(400):
        if world.run(50, confidence=0.9, worth=0.95) == 1.0:
            return
    pytest.fail("20,000 steps and still not used")


def test_where_each_node_costs_a_step_nothing_is_drafted() -> None:
    world = World(node_ms=20.0)
    world.run(TRIALS, confidence=0.9, worth=0.9)
    assert world.run(300, confidence=0.9, worth=0.9) < 0.05


def test_a_plan_prices_both_sides_of_every_stair() -> None:
    """Nodes up to the next stair are free, and the one after it pays for all of the next."""
    curve = Curve((1.0, 512.0), (10.0, 521.0))
    stepped = CostTable((1,), (64,), ((curve,),), stairs=(4, 24, 96))
    config = SpeculationConfig()
    prices = []
    for table in (stepped, CostTable((1,), (64,), ((curve,),))):
        controller = SpeculationController(config, table, Curve((1.0,), (LAYER_MS,)), frozenset())
        plan = controller.plan("eagle2", 3, CONTEXT, 3)
        assert plan is not None
        prices.append(plan.verify_ms(100))
    steps = [0, 1, 2, 21, 22, 93, 94]
    tokens = [4, 4, 24, 24, 96, 96, 97]
    assert prices[0][steps].tolist() == pytest.approx([9.0 + n for n in tokens])
    # The control: the same curve without stairs.
    assert prices[1][steps].tolist() == pytest.approx([9.0 + 3 + n for n in steps])


def test_a_large_batch_drafts_less_than_a_small_one() -> None:
    sizes = []
    for batch in (1, 8, 32):
        world = World(node_ms=0.4, batch=batch)
        world.run(80, confidence=0.7, worth=0.6)
        forest = world.step(0.7, 0.6)
        sizes.append(0.0 if forest is None else forest.num_nodes / batch)
    assert sizes[0] >= sizes[1] >= sizes[2]
    assert sizes[0] > sizes[2]


@pytest.mark.parametrize("slower", [0.5, 2.0])
def test_residuals_correct_the_predictions(slower: float) -> None:
    world = World(slower=slower)
    before = world.controller.prices.plain_step_ms(1, CONTEXT)
    world.run(200, confidence=0.9, worth=0.9)
    after = world.controller.prices.plain_step_ms(1, CONTEXT)
    plan = plan_of(world)
    assert plan is not None
    assert (after > before) == (slower > 1.0)
    forest = world.step(0.9, 0.9)
    assert forest is not None
    size = forest.num_nodes
    assert plan.verify_ms(size)[size] == pytest.approx(slower * (10.0 + 0.01 * size), rel=0.1)


def test_the_envelope_bounds_smart_until_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    free = plan_of(world)
    world.controller.set_envelope(
        SpeculationPlan(
            max_nodes=7, max_depth=2, top_k=1, epoch=3, ttl_ms=500.0, draft_cost_factor=4.0
        )
    )
    bound = plan_of(world)
    assert world.controller.plan_epoch == 3
    assert bound is not None
    assert free is not None
    assert (bound.max_nodes, bound.max_depth, bound.top_k) == (7, 2, 1)
    assert bound.draft_layer(1) == pytest.approx(4 * free.draft_layer(1))
    now[0] += 0.6
    assert plan_of(world) == free


def test_the_envelope_can_widen_nothing() -> None:
    world = World()
    free = plan_of(world)
    world.controller.set_envelope(SpeculationPlan(max_nodes=99_999, max_depth=99, top_k=99))
    assert plan_of(world) == free


@pytest.mark.parametrize("policy", ["smart", "eagle2"])
def test_an_envelope_of_off_turns_every_policy_off_while_it_lives(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    world.controller.set_envelope(SpeculationPlan(policy="off", ttl_ms=500.0))
    assert plan_of(world, policy) is None
    now[0] += 0.6
    assert plan_of(world, policy) is not None


def test_without_a_drafter_or_with_policy_off_nothing_is_drafted() -> None:
    world = World()
    assert plan_of(world, "off") is None
    world.controller.set_layer_cost(None)
    assert plan_of(world) is None
    world.controller.set_layer_cost(Curve((1.0,), (LAYER_MS,)))
    assert plan_of(world) is not None
