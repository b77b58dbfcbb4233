"""Where replicas may stand, and what is told of a pool that has nowhere to."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from deploy.args import PoolArgs
from deploy.node_choice import NodeChoice
from deploy.pool_state import PoolState, pool_states
from smart_serve.messages import LoadReport
from smart_serve.routing.cluster_view import ClusterView, ReplicaView

KIND = "ray.io/accelerator-type"
H100 = {"Alive": True, "Labels": {KIND: "H100"}, "Resources": {"CPU": 8.0, "GPU": 1.0}}
BARE = {"Alive": True, "Labels": {}, "Resources": {"CPU": 8.0}}


def state(pool: PoolArgs, *nodes: dict[str, Any]) -> str:
    return pool_states([pool], ClusterView(), nodes)[pool.name].state


@pytest.mark.parametrize(
    ("wanted", "labels", "fits"),
    [
        ("H100", {KIND: "H100"}, True),
        ("H100", {KIND: "L4"}, False),
        ("H100", {}, False),
        ("!H100", {KIND: "L4"}, True),
        ("!H100", {KIND: "H100"}, False),
        ("in(H100, H200)", {KIND: "H200"}, True),
        ("in(H100,H200)", {KIND: "L4"}, False),
        ("!in(H100,H200)", {KIND: "L4"}, True),
        ("!in(H100,H200)", {KIND: "H100"}, False),
    ],
)
def test_labels_are_selected_by_as_ray_does(
    wanted: str, labels: dict[str, str], fits: bool
) -> None:
    assert NodeChoice(label_selector={KIND: wanted}).fits(labels, {}) == fits


def test_a_pool_without_a_node_says_so() -> None:
    gpu = PoolArgs(name="a", num_gpus=1, label_selector={KIND: "H100"})
    assert state(gpu, H100, BARE) == "starting"
    assert state(gpu, BARE) == "no_node"
    assert state(gpu, {**H100, "Alive": False}) == "no_node"
    assert state(gpu, {**H100, "Resources": {"CPU": 8.0}}) == "no_node"
    assert state(PoolArgs(num_cpus=16), H100) == "no_node"
    assert state(PoolArgs(), BARE) == "starting"
    typed = PoolArgs(accelerator_type="H100")
    assert state(typed, H100) == "no_node"
    resources = {**H100["Resources"], "accelerator_type:H100": 1.0}
    assert state(typed, {**H100, "Resources": resources}) == "starting"


def test_a_second_choice_counts() -> None:
    pool = PoolArgs(label_selector={KIND: "H200"}, fallbacks=({KIND: "H100"},))
    assert state(pool, H100) == "starting"
    assert state(pool, BARE) == "no_node"
    strategy = [{"label_selector": {KIND: "H100"}}]
    assert pool.actor_options() == {
        "label_selector": {KIND: "H200"},
        "fallback_strategy": strategy,
    }


def test_what_reports_serves_whatever_the_nodes_look_like() -> None:
    zeros = dict.fromkeys(("running", "waiting", "free_blocks", "total_blocks", "plan_epoch"), 0)
    rates = dict.fromkeys(
        ("tokens_per_s", "step_ms", "draft_ms", "verify_ms", "accepted_per_step", "nodes_per_step"),
        0.0,
    )
    report = LoadReport(replica_id="r", pool="default", device_type="cpu", **zeros, **rates)
    view = ClusterView((ReplicaView(report, 0.0),))
    assert pool_states([PoolArgs()], view, []) == {"default": PoolState("serving", 1)}


@pytest.mark.parametrize(
    "fields",
    [
        {"fallbacks": [{KIND: "H100"}]},
        {
            "accelerator_type": "H100",
            "label_selector": {KIND: "H100"},
            "fallbacks": [{KIND: "L4"}],
        },
        {"labels": {}},
    ],
)
def test_choices_that_contradict_each_other_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PoolArgs(**fields)
