"""The policy as Serve calls it, without a cluster."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
import yaml
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingContext, AutoscalingPolicy

from deploy.app import build
from deploy.args import AppArgs, PoolArgs
from deploy.autoscaling import AppAutoscaling, serve_config, target_stats
from smart_serve.messages import LoadReport

REPORT = LoadReport(
    replica_id="a",
    pool="h100",
    device_type="H100",
    running=32,
    waiting=3,
    free_blocks=1,
    total_blocks=2,
    tokens_per_s=1.0,
    step_ms=12.0,
    draft_ms=3.0,
    verify_ms=9.0,
    accepted_per_step=0.0,
    nodes_per_step=0.0,
    plan_epoch=0,
    max_running=64,
    plain_steps=((1, 8.0), (64, 16.0)),
)


def context(
    name: str,
    target: int,
    stats: tuple[dict[str, float], ...] = (),
    queued: float = 0.0,
    **more: Any,
) -> tuple[DeploymentID, AutoscalingContext]:
    key = DeploymentID(name, "app")
    replicas = [ReplicaID(f"r{place}", key) for place in range(len(stats))]
    names = {metric for one in stats for metric in one}
    told = {n: {r: one[n] for r, one in zip(replicas, stats, strict=True)} for n in names}
    fields: dict[str, Any] = {
        "total_num_requests": queued,
        "total_queued_requests": queued,
        "capacity_adjusted_min_replicas": 0,
        "capacity_adjusted_max_replicas": 5,
        **more,
    }
    return key, AutoscalingContext(
        deployment_id=key,
        deployment_name=name,
        app_name="app",
        current_num_replicas=len(stats),
        target_num_replicas=target,
        running_replicas=replicas,
        policy_state={},
        current_time=time.time(),
        config=serve_config(0, 5, 10.0),
        aggregated_metrics=told,
        raw_metrics={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        **fields,
    )


def decided(policy: AppAutoscaling, *contexts: tuple[DeploymentID, Any]) -> dict[str, int]:
    policy._next_s = 0.0
    replicas, state = policy(dict(contexts))
    assert state == {}
    return {key.name: count for key, count in replicas.items()}


def test_a_target_tells_of_plain_decoding() -> None:
    stats = target_stats(REPORT, 3.0)
    assert stats["full_rate"] == pytest.approx(64 / 0.016)
    assert stats["used_rate"] == pytest.approx(32 / (0.008 + 0.008 * 31 / 63))
    assert (stats["draft_share"], stats["price_per_hour"]) == (0.25, 3.0)
    idle = target_stats(msgspec.structs.replace(REPORT, running=0), 3.0)
    assert (idle["used_rate"], idle["draft_share"]) == (0.0, 0.0)


def test_pools_grow_where_tokens_are_cheap_and_parts_by_their_work() -> None:
    full = target_stats(msgspec.structs.replace(REPORT, running=64, waiting=64), 3.0)
    slow = {**target_stats(REPORT, 3.0), "full_rate": 1000.0, "used_rate": 0.0, "waiting": 0.0}
    seen = decided(
        AppAutoscaling(),
        context("target-h100", 1, (full,)),
        context("target-l4", 1, (slow,)),
        context("drafter", 1, queued=2.0),
        context("vision-encoder", 1, queued=20.0),
        context("ingress", 1, queued=3.0),
    )
    assert seen == {
        "target-h100": 3,
        "target-l4": 1,
        "drafter": 1,
        "vision-encoder": 5,
        "ingress": 1,
    }


def test_a_pool_is_remembered_when_it_is_empty_and_woken_by_its_queue() -> None:
    policy = AppAutoscaling(keep_s=0.0)
    assert decided(policy, context("target-h100", 1, (target_stats(REPORT, 3.0),)))
    idle = target_stats(msgspec.structs.replace(REPORT, running=0, waiting=0), 3.0)
    assert decided(policy, context("target-h100", 1, (idle,))) == {"target-h100": 0}
    assert decided(policy, context("target-h100", 0)) == {"target-h100": 0}
    assert decided(policy, context("target-h100", 0, queued=200.0)) == {"target-h100": 5}


def test_serve_makes_one_policy_from_the_configuration() -> None:
    with open("deploy/configs/mixed-gpus.yaml") as file:
        config = yaml.safe_load(file)["applications"][0]
    policy = AutoscalingPolicy(**config["autoscaling_policy"])
    assert isinstance(policy.get_policy()(**policy.policy_kwargs), AppAutoscaling)
    assert any(low < high for low, high in (p.bounds for p in AppArgs(**config["args"]).pools))


def test_only_what_has_room_is_scaled() -> None:
    pools = (PoolArgs(name="a"), PoolArgs(name="b", min_replicas=0, max_replicas=3))
    app = build(AppArgs(pools=pools, vision_max_replicas=2))
    ingress = app._bound_deployment
    targets = ingress.init_args[1]
    fixed, scaled = (targets[name]._bound_deployment for name in "ab")
    vision = fixed.init_args[3]
    assert (fixed.num_replicas, fixed._deployment_config.autoscaling_config) == (1, None)
    bounds = scaled._deployment_config.autoscaling_config
    assert (bounds.min_replicas, bounds.max_replicas, bounds.downscale_delay_s) == (0, 3, 0.0)
    assert vision._bound_deployment._deployment_config.autoscaling_config.max_replicas == 2


@pytest.mark.parametrize(
    "bad", [{"min_replicas": 3, "max_replicas": 2}, {"min_replicas": -1}, {"max_replicas": 0}]
)
def test_bounds_that_make_no_sense_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="_replicas"):
        PoolArgs(**bad)
    with pytest.raises(ValueError, match="vision_max_replicas"):
        AppArgs(vision_replicas=3, vision_max_replicas=2)
