"""`smart-serve check`: what a configuration would place where, and what is missing. Starts nothing.

smart-serve check deploy/configs/mixed-gpus.yaml              against the running Ray cluster
smart-serve check deploy/configs/cpu.yaml --local             against this machine
smart-serve check drafter=ngram policy=smart --nodes FILE     against nodes that a file lists
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml
from pydantic import ValidationError
from ray.serve import Deployment

from deploy.app import deployments
from deploy.args import AppArgs
from deploy.hardware import cluster_nodes, file_nodes, local_nodes
from deploy.keys import load_keys
from deploy.placement import Demand, Node, Placed, place, shortage
from smart_serve.environment import check_environment
from smart_serve.errors import ConfigError, SmartServeError

BUILDER = "deploy.app:build"


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the check found."""

    nodes: list[Node]
    placed: list[Placed]
    problems: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    text = "a Serve configuration file, or the builder's arguments as key=value"
    parser.add_argument("config", nargs="+", metavar="CONFIG", help=text)
    where = parser.add_mutually_exclusive_group()
    text = "of the Ray cluster (%(default)s: the one that runs on this machine)"
    where.add_argument("--address", default="auto", help=text)
    where.add_argument("--local", action="store_true", help="take this machine for the cluster")
    text = 'JSON list of {"name", "cpus", "gpus", "accelerator_type"} to take for the cluster'
    where.add_argument("--nodes", type=Path, metavar="FILE", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON value instead")


def run(options: argparse.Namespace) -> int:
    """Tells the placement; the status is 1 if there is a problem."""
    problems: list[str] = []
    demands: list[Demand] = []
    try:
        for args in applications(options.config):
            problems += environment_problems(args)
            bounds = bounds_of(args)
            demands += (demand_of(one, *bounds[one.name]) for one in deployments(args))
    except ConfigError as error:
        problems.append(error.message)
    nodes = _nodes(options)
    placed = place(demands, nodes)
    problems += [shortage(one, nodes) for one in placed if one.missing]
    result = CheckResult(nodes=nodes, placed=placed, problems=problems)
    print(msgspec.json.encode(result).decode() if options.json else "\n".join(_lines(result)))
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _nodes(options: argparse.Namespace) -> list[Node]:
    if options.nodes is not None:
        return file_nodes(options.nodes)
    return local_nodes() if options.local else cluster_nodes(options.address)


def applications(words: Sequence[str]) -> list[AppArgs]:
    """Of a Serve configuration, those that our builder makes; or one, of `key=value` words.
    Raises `ConfigError`."""
    if len(words) == 1 and "=" not in words[0]:
        return [_parsed(args, f"{words[0]}: ") for args in _of_file(Path(words[0]))]
    pairs = [word.partition("=") for word in words]
    if any(not equals for _, equals, _ in pairs):
        raise ConfigError("give one configuration file, or arguments as key=value")
    # A list or an object is written as JSON or YAML; `serve run` takes words alone.
    return [_parsed({key: yaml.safe_load(value) for key, _, value in pairs}, "")]


def _of_file(path: Path) -> list[dict[str, Any]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    listed = content.get("applications") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ConfigError(f"{path} has no list of applications: it is no Serve configuration")
    ours = [one.get("args") or {} for one in listed if one.get("import_path") == BUILDER]
    if not ours:
        raise ConfigError(f"{path} has no application with import_path {BUILDER}")
    return ours


def _parsed(args: dict[str, Any], where: str) -> AppArgs:
    try:
        return AppArgs.model_validate(args)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'args'}: {one['msg']}" for one in error.errors()
        )
        raise ConfigError(f"{where}{told}") from error


def environment_problems(args: AppArgs) -> Iterator[str]:
    """What would end the start before anything is placed."""
    for check in (check_environment, lambda: load_keys(args.api_keys_file)):
        try:
            check()
        except SmartServeError as error:
            yield error.message
    for what, name in (("model", args.model), ("drafter", args.drafter or "")):
        folder = Path(name.removeprefix("draft_model:"))
        if folder.is_absolute() and not folder.is_dir():
            yield f"{what} {folder} is not on this machine, and must be on every node that loads it"


def bounds_of(args: AppArgs) -> dict[str, tuple[int, int]]:
    """Fewest and most replicas of each deployment."""
    return {
        "router": (1, 1),
        "ingress": args.bounds("ingress"),
        "vision-encoder": args.bounds("vision"),
        "drafter": args.bounds("drafter"),
        **{f"target-{pool.name}": pool.bounds for pool in args.pools},
    }


def demand_of(deployment: Deployment, fewest: int, most: int) -> Demand:
    """What Ray will be asked for."""
    asked = deployment.ray_actor_options or {}
    fallbacks = [one["label_selector"] for one in asked.get("fallback_strategy") or ()]
    nodes = {
        "accelerator_type": asked.get("accelerator_type"),
        "label_selector": asked.get("label_selector"),
        "fallbacks": fallbacks,
    }
    return Demand(
        deployment=deployment.name,
        replicas=fewest,
        most=most if most > fewest else None,
        cpus=asked["num_cpus"],
        gpus=asked["num_gpus"],
        nodes={name: value for name, value in nodes.items() if value},
    )


def _lines(result: CheckResult) -> Iterator[str]:
    for node in result.nodes:
        gpus = f", {node.gpus} GPU {node.accelerator_type or ''}".rstrip() if node.gpus else ""
        yield f"node {node.name}: {node.cpus:g} CPU{gpus}"
    for one in result.placed:
        places = ", ".join(f"{name} × {count}" for name, count in one.nodes.items()) or "nowhere"
        count = f"{one.demand.replicas}{f' to {one.demand.most}' if one.demand.most else ''}"
        yield f"{one.demand.deployment}: {count} × ({one.demand}) on {places}"
    if not result.problems:
        yield "nothing is missing"
