"""The application: `serve run deploy.app:build key=value ...`, or `args:` in a Serve config.

Importing this must stay light: Serve builds the application on any node, so torch is loaded by the
replicas that need it and not here.
"""

# No `from __future__ import annotations` here: Serve reads the type of `build`'s parameter, and
# does not understand it as a string.
import secrets
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import RequestRouterConfig

from deploy.args import AppArgs, PoolArgs
from deploy.autoscaling import ONGOING, serve_config
from deploy.drafter import DrafterReplica
from deploy.ingress import IngressReplica
from deploy.keys import load_keys
from deploy.node_choice import NodeChoice
from deploy.proxy import of_replicas
from deploy.router import RouterReplica
from deploy.target import TargetReplica
from deploy.vision_encoder import VisionEncoderReplica
from smart_serve.environment import check_environment
from smart_serve.routing.autoscale import FULL

APP_NAME = "smart-serve"
MANY = 1_000
"""Ongoing requests where the deployment itself does not want to limit them."""
BESIDES = 256
"""Calls of an ingress replica that `Limits.max_requests` does not count: of routes without a body,
of handles, and of clients that are still sending what was refused."""
ANYWHERE = NodeChoice()
DRAFTER_DRAIN_S = 3.0
"""Leases never end by themselves: their holders find another drafter, or are ending too."""


def build(args: AppArgs) -> Application:
    """Router, vision encoder, drafter, one target deployment per pool, and the ingress before them.

    An unknown or ill-typed argument is an error. Raises `ConfigError` for an environment in which
    the application cannot run.
    """
    check_environment()
    # Shared by this application's targets and drafters only; a new deployment has a new one.
    secret = secrets.token_bytes(32)
    router = _deployment(
        args, RouterReplica, "router", args.router_cpus, num_replicas=args.router_replicas
    ).bind(args)
    vision = _vision(args).bind(args)
    drafters = _drafter(args).bind(args, secret) if args.drafts_remotely else None
    pools = {
        pool.name: _target(args, pool).bind(args, pool, router, vision, drafters, secret)
        for pool in args.pools
    }
    return _ingress(args).bind(args, pools, router, load_keys(args.api_keys_file))


def deployments(args: AppArgs) -> list[Deployment]:
    """What `build` deploys, for those who want to know beforehand."""
    router = _deployment(args, RouterReplica, "router", args.router_cpus)
    drafters = [_drafter(args)] if args.drafts_remotely else []
    targets = [_target(args, pool) for pool in args.pools]
    return [_ingress(args), router, _vision(args), *drafters, *targets]


def _ingress(args: AppArgs) -> Deployment:
    return _deployment(
        args,
        serve.ingress()(IngressReplica),
        "ingress",
        args.ingress_cpus,
        **_scaled(args.bounds("ingress"), ONGOING["ingress"]),
        # It refuses what is too much itself; what Serve held back would wait without a word.
        max_ongoing_requests=args.parsed_limits().max_requests + BESIDES,
        # No stream lasts longer, and nobody but its client could go on with one.
        graceful_shutdown_timeout_s=args.parsed_limits().request_timeout_s,
    )


def _vision(args: AppArgs) -> Deployment:
    return _deployment(
        args,
        VisionEncoderReplica,
        "vision-encoder",
        args.vision_cpus,
        num_gpus=args.vision_gpus,
        nodes=args.vision_nodes,
        **_scaled(args.bounds("vision"), ONGOING["vision-encoder"]),
        # One picture, one replica: each is encoded, and cached, once.
        request_router_config=RequestRouterConfig(
            request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
        ),
    )


def _drafter(args: AppArgs) -> Deployment:
    return _deployment(
        args,
        DrafterReplica,
        "drafter",
        args.drafter_cpus,
        num_gpus=args.drafter_gpus,
        nodes=args.drafter_nodes,
        **_scaled(args.bounds("drafter"), ONGOING["drafter"]),
        graceful_shutdown_timeout_s=DRAFTER_DRAIN_S,
        graceful_shutdown_wait_loop_s=0.2,
    )


def _target(args: AppArgs, pool: PoolArgs) -> Deployment:
    config = args.engine_config(pool)
    return _deployment(
        args,
        TargetReplica,
        f"target-{pool.name}",
        pool.num_cpus,
        num_gpus=pool.num_gpus,
        nodes=pool,
        **_scaled(pool.bounds, FULL * config.max_running),
        # The engine refuses what is too much with a 429; Serve must let that much in, and some.
        max_ongoing_requests=config.max_running + config.max_waiting + 64,
        graceful_shutdown_timeout_s=args.drain_s,
        request_router_config=RequestRouterConfig(
            request_router_class="deploy.request_router.PreferredReplicaRouter"
        ),
    )


def _scaled(bounds: tuple[int, int], ongoing: float) -> dict[str, Any]:
    """A fixed number, unless the bounds differ; then each replica is to have so many requests, or
    what the application's policy says."""
    fewest, most = bounds
    if fewest == most:
        return {"num_replicas": most}
    return {"autoscaling_config": serve_config(fewest, most, ongoing)}


def _deployment(
    args: AppArgs,
    replica: type,
    name: str,
    num_cpus: float,
    *,
    num_gpus: float = 0,
    nodes: NodeChoice = ANYWHERE,
    max_ongoing_requests: int = MANY,
    **options: Any,
) -> Deployment:
    environment = {"env_vars": of_replicas()}
    actor = {"num_cpus": num_cpus, "num_gpus": num_gpus, "runtime_env": environment}
    return serve.deployment(
        replica,
        name=name,
        ray_actor_options={**actor, **nodes.actor_options()},
        max_surge_percent=args.surge_percent,
        max_ongoing_requests=max_ongoing_requests,
        # A dead replica is replaced once somebody has looked.
        health_check_period_s=2.0,
        # Serve's own access log would be full of load reports; the ingress writes one of its own.
        logging_config={"enable_access_log": False, "encoding": args.log_format.upper()},
        **options,
    )
