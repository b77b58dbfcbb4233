"""What several targets ask while the drafter is busy is drafted at once, and each gets the answer
that it would have got alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import msgspec.structs
import numpy as np
import pytest
import torch
from channel_rig import SECRET, RawPeer, wait_for
from drafter_kinds import KINDS, inputs_for, name_of

from deploy.step_channel.client import RemoteDrafter
from deploy.step_channel.convert import batch_to_message
from deploy.step_channel.server import DrafterServer
from smart_serve.config import EngineConfig
from smart_serve.drafters.load import load_drafter
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.drafters.protocol import (
    DraftBatch,
    DrafterUnavailable,
    DraftInput,
    Proposal,
    SharedDrafter,
)
from smart_serve.speculation.plan import GrowthPlan

changed = msgspec.structs.replace

PLAN = GrowthPlan(policy="eagle2", max_nodes=64, max_depth=3, top_k=3, nodes_per_tree=9)
DEPTH = PLAN.max_depth
DRAWN = {
    "max_nodes": 64, "max_depth": 3, "top_k": 64,
    "draw_seeds": (3, 2**53 - 1), "temperatures": (1.0, 0.7),
}  # fmt: skip
PLANS = (
    PLAN,
    GrowthPlan(policy="chain:2", max_nodes=4, max_depth=2, top_k=1, nodes_per_tree=2),
    GrowthPlan(policy="adaptive-chain", max_nodes=2, max_depth=1, top_k=1, nodes_per_tree=1),
    GrowthPlan(policy="static", max_nodes=8, max_depth=2, top_k=2, shape=((0,), (1,), (0, 0))),
    GrowthPlan(policy="eagle2:6x3", max_nodes=12, max_depth=3, top_k=2, nodes_per_tree=6),
    GrowthPlan(policy="smart-paper", max_nodes=64, max_depth=3, top_k=4, nodes_per_tree=8),
    GrowthPlan(policy="smart", max_nodes=64, max_depth=3, top_k=5, verify_knot_ms=(9.0,)),
    GrowthPlan(policy="smart-drawn", verify_knot_ms=(9.0,), **DRAWN),
    GrowthPlan(policy="delayed:2,1,2", **DRAWN),
    GrowthPlan(policy="distinct:2,2", **DRAWN),
    GrowthPlan(policy="selector", root_features=((np.nan,) * 8,) * 2, **DRAWN),
)


class Gate:
    """Holds the drafter's thread back, and counts the passes of its network."""

    def __init__(self, drafter: SharedDrafter, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_passes = 0
        self.fail_above: int | None = None
        """Rows of one pass that this device has no memory for."""
        self._is_closed, self._is_reached = threading.Event(), threading.Event()
        self._is_closed.set()
        if isinstance(drafter, NetworkDrafter):
            real = drafter._network.forward

            def forward(inputs: torch.Tensor, step: object) -> torch.Tensor:
                self.num_passes += 1
                if self.fail_above is not None and len(inputs) > self.fail_above:
                    raise torch.OutOfMemoryError
                return real(inputs, step)

            monkeypatch.setattr(drafter._network, "forward", forward)
        propose = drafter.propose_together

        def wait(batches: object) -> Iterator[object]:
            self._is_reached.set()
            assert self._is_closed.wait(10)
            return propose(batches)

        monkeypatch.setattr(drafter, "propose_together", wait)

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Whoever asks first is in the drafter's hands by the time that `busy` returns."""
        self._is_closed.clear()
        self._is_reached.clear()
        yield
        self._is_closed.set()

    def wait_until_reached(self) -> None:
        assert self._is_reached.wait(10)


class Shared:
    """A drafter behind the channel, with two targets and one more that keeps it busy."""

    def __init__(self, drafter: SharedDrafter, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = Gate(drafter, monkeypatch)
        self.server = DrafterServer(drafter, SECRET, unix_path=path)
        self.server.start()
        self.blocker, *self.targets = (RemoteDrafter(SECRET, unix_path=path) for _ in range(3))

    def propose(self, batches: list[DraftBatch], blocking: DraftBatch) -> list[object]:
        """Each target's batch, asked while the drafter is busy; proposals or what was raised."""
        with self.gate.shut():
            blocked = self.blocker.ask(blocking)
            self.gate.wait_until_reached()
            # A frame in a Unix socket's buffer is there for its reader.
            asked = [target.ask(one) for target, one in zip(self.targets, batches, strict=True)]
        blocked()
        self.gate.num_passes -= 1  # the blocker's own, one layer deep
        outcomes: list[object] = []
        for answer in asked:
            try:
                outcomes.append(answer())
            except DrafterUnavailable as error:
                outcomes.append(error)
        return outcomes

    def stop(self) -> None:
        self.server.stop()
        for one in (self.blocker, *self.targets):
            one.disconnect()


def blocking_batch(drafter: SharedDrafter, rng: np.random.Generator) -> DraftBatch:
    """Of one layer: a single pass."""
    return DraftBatch(
        (inputs_for(drafter.info, rng, 0, 7),),
        GrowthPlan(policy="chain:1", max_nodes=1, max_depth=1, top_k=1, nodes_per_tree=1),
    )


def two(item: DraftInput, plan: GrowthPlan) -> DraftBatch:
    return DraftBatch((item, changed(item, sequence_id=1)), plan)


def assert_same_trees(here: Proposal, there: Proposal) -> None:
    """Confidences to within the last bits, which a larger batch may round otherwise."""
    assert here.unknown == there.unknown
    for field in fields(here.growth.forest):
        one, other = (getattr(side.growth.forest, field.name) for side in (here, there))
        assert np.allclose(one, other, rtol=1e-4, atol=1e-6), field.name
    assert (here.growth.laws is None) == (there.growth.laws is None)
    assert here.layer_rows == there.layer_rows


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.policy)
@pytest.mark.parametrize("kind", KINDS)
def test_two_targets_get_what_each_would_get_alone(
    small_llava: Path,
    tmp_path: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    plan: GrowthPlan,
) -> None:
    """One target with the plan, one with another: the trees are those of a drafter of its own."""
    name = name_of(kind, small_llava, tmp_path / "drafter")
    config = EngineConfig(kv_tokens=1024)
    far, *own = (load_drafter(name, small_llava, config) for _ in range(3))
    rng = np.random.default_rng(0)
    shared = Shared(far, path, monkeypatch)
    start = 0
    for count in (20, 1, 3):
        items = [inputs_for(far.info, rng, start, count) for _ in range(2)]
        batches = [two(items[0], plan), two(items[1], PLAN)]
        before = shared.server.totals.drafts
        got = shared.propose(batches, blocking_batch(far, rng))
        assert shared.server.totals.drafts == before + 2, "the blocker's, and one for both"
        for drafter, batch, outcome in zip(own, batches, got, strict=True):
            assert isinstance(outcome, Proposal)
            assert_same_trees(drafter.propose(batch), outcome)
        assert sum(outcome.growth.forest.num_nodes for outcome in got) > 0
        start += count
    assert shared.server.totals.questions == 9
    assert shared.server.totals.sequences == 15
    shared.stop()


def a_network(small_llava: Path, tmp_path: Path, kv_tokens: int = 1024) -> SharedDrafter:
    name = name_of("msd", small_llava, tmp_path / "drafter")
    return load_drafter(name, small_llava, EngineConfig(kv_tokens=kv_tokens))


def test_two_questions_cost_the_passes_of_one(
    small_llava: Path, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = a_network(small_llava, tmp_path)
    rng = np.random.default_rng(1)
    shared = Shared(far, path, monkeypatch)
    batches = [two(inputs_for(far.info, rng, 0, 9), PLAN) for _ in range(2)]
    shared.propose(batches, blocking_batch(far, rng))
    assert shared.gate.num_passes == DEPTH
    # The control: one after the other they take the passes of two.
    shared.gate.num_passes = 0
    for target in shared.targets:
        target.propose(two(inputs_for(far.info, rng, 9, 2), PLAN))
    assert shared.gate.num_passes == 2 * DEPTH
    shared.stop()


def test_a_shallow_question_does_not_wait_for_a_deep_one(small_llava: Path, tmp_path: Path) -> None:
    far = a_network(small_llava, tmp_path)
    rng = np.random.default_rng(2)
    shallow = blocking_batch(far, rng)
    deep = DraftBatch((changed(inputs_for(far.info, rng, 0, 9), sequence_id=1),), PLAN)
    ends = [(number, len(one.layer_ms)) for number, one in far.propose_together((deep, shallow))]
    assert ends == [(1, 1), (0, DEPTH)]


@pytest.mark.parametrize(
    "nonsense",
    [
        changed(PLAN, policy="no-such-policy"),
        changed(PLAN, calibration=((),)),
        changed(PLAN, top_k=0),
        changed(PLAN, policy="delayed:2,1,2"),
    ],
    ids=["unknown policy", "no calibration", "no children", "no seeds"],
)
def test_a_plan_that_makes_no_sense_costs_its_own_target_a_step(
    small_llava: Path,
    tmp_path: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nonsense: GrowthPlan,
) -> None:
    far = a_network(small_llava, tmp_path)
    rng = np.random.default_rng(3)
    shared = Shared(far, path, monkeypatch)
    items = [inputs_for(far.info, rng, 0, 9) for _ in range(2)]
    bad, good = shared.propose(
        [two(items[0], nonsense), two(items[1], PLAN)], blocking_batch(far, rng)
    )
    assert isinstance(bad, DrafterUnavailable)
    assert isinstance(good, Proposal)
    assert good.growth.forest.sizes.tolist() == [9, 9]
    # Both targets can go on; the first one's sequences are opened anew.
    more = [inputs_for(far.info, rng, 9, 2), inputs_for(far.info, rng, 0, 3)]
    again = shared.propose([two(more[1], PLAN), two(more[0], PLAN)], blocking_batch(far, rng))
    assert [one.unknown for one in again] == [(), ()]
    shared.stop()


def test_a_bad_frame_or_a_dead_target_costs_the_others_nothing(
    small_llava: Path, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = a_network(small_llava, tmp_path)
    rng = np.random.default_rng(4)
    shared = Shared(far, path, monkeypatch)
    batch = two(inputs_for(far.info, rng, 0, 9), PLAN)
    liar, (dead, alive) = RawPeer(path).enter(), shared.targets
    question, arrays = batch_to_message(0, batch, far.info)
    with shared.gate.shut():
        blocked = shared.blocker.ask(blocking_batch(far, rng))
        shared.gate.wait_until_reached()
        liar.say(changed(question, vector_dtype=None), *arrays)
        dead.ask(batch)
        dead.disconnect()
        answer = alive.ask(batch)
    blocked()
    assert answer().growth.forest.sizes.tolist() == [9, 9]
    assert liar.is_hung_up()
    wait_for(lambda: shared.server.num_connections == 2)
    shared.stop()


@pytest.mark.parametrize(("rows", "failed"), [(30, ()), (15, (0,)), (8, (0, 1))])
def test_a_pass_that_fails_is_tried_for_each_target_alone(
    small_llava: Path,
    tmp_path: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    failed: tuple[int, ...],
) -> None:
    """Two questions of 18 and 14 rows; a pass of more than `rows` is too much for the device."""
    far = a_network(small_llava, tmp_path)
    rng = np.random.default_rng(5)
    shared = Shared(far, path, monkeypatch)
    opening = [two(inputs_for(far.info, rng, 0, 9), PLAN) for _ in range(2)]
    shared.propose(opening, blocking_batch(far, rng))
    held = far.free_blocks
    shared.gate.fail_above = rows
    more = [two(inputs_for(far.info, rng, 9, count), PLAN) for count in (9, 7)]
    got = shared.propose(more, blocking_batch(far, rng))
    assert [i for i, one in enumerate(got) if isinstance(one, DrafterUnavailable)] == [*failed]
    assert all(one.unknown == () for one in got if isinstance(one, Proposal))
    shared.gate.fail_above = None
    last = [two(inputs_for(far.info, rng, 9 + n, 1), PLAN) for n in (9, 7)]
    again = shared.propose(last, blocking_batch(far, rng))
    assert [one.unknown for one in again] == [(0, 1) if i in failed else () for i in range(2)]
    shared.stop()
    wait_for(lambda: far.free_blocks == far.total_blocks)
    assert held < far.total_blocks
