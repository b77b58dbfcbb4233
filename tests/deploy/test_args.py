from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

import deploy
from deploy.app import build, deployments
from deploy.args import AppArgs, PoolArgs

CONFIGS = Path(deploy.__file__).parent / "configs"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"modle": "bundled"}, "modle"),
        ({"policy": "magic"}, "policy"),
        ({"limits": {"max_imagse": 3}}, "max_imagse"),
        ({"engine": {"kv_token": 3}}, "kv_token"),
        ({"engine": {"kv_tokens": 0}}, "kv_tokens"),
        ({"engine": {"speculation": {"max_depth": 0}}}, "max_depth"),
        ({"pools": []}, "pools"),
        ({"image_domains": ["https://example.org"]}, "image_domains"),
        ({"image_domains": ["*"]}, "image_domains"),
        ({"log_format": "xml"}, "log_format"),
        ({"pools": [{"name": "a", "gpus": 1}]}, "gpus"),
        ({"pools": [{"name": "a"}, {"name": "a"}]}, "same name"),
        ({"pools": [{"name": "A b"}]}, "pools"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        call_user_app_builder_with_args_if_necessary(build, arguments)


def test_values_from_a_command_line_are_converted() -> None:
    args = AppArgs.model_validate({"drafter": "null", "vision_replicas": "2"})
    assert args.drafter is None
    assert args.vision_replicas == 2
    assert not args.drafts_remotely


@pytest.mark.parametrize(
    ("drafter", "remotely"), [("bundled", True), ("draft_model:/m", True), ("ngram", False)]
)
def test_prompt_lookup_needs_no_replica(drafter: str, remotely: bool) -> None:
    args = AppArgs(drafter=drafter)
    assert args.drafts_remotely == remotely


@pytest.mark.parametrize("limits", [{}, {"max_requests": 5}, {"max_requests": 9_000}])
def test_serve_lets_in_all_that_the_ingress_itself_would_refuse(limits: dict[str, int]) -> None:
    args = AppArgs(limits=limits)
    ingress = next(one for one in deployments(args) if one.name == "ingress")
    assert ingress.max_ongoing_requests > args.parsed_limits().max_requests


def test_each_pool_has_an_engine_of_its_own() -> None:
    args = AppArgs(
        policy="eagle2",
        engine={"kv_tokens": 1024, "speculation": {"top_k": 7}},
        pools=(
            PoolArgs(name="h100", num_gpus=1, engine={"kv_tokens": 4096}),
            PoolArgs(name="cpu", engine={"speculation": {"max_depth": 3}}),
        ),
    )
    h100, cpu = (args.engine_config(pool) for pool in args.pools)
    assert (h100.device, cpu.device) == ("cuda", "cpu")
    assert (h100.kv_tokens, cpu.kv_tokens) == (4096, 1024)
    assert (h100.speculation.policy, h100.speculation.top_k) == ("eagle2", 7)
    assert (cpu.speculation.max_depth, cpu.speculation.top_k) == (3, 7)


def test_the_drafters_hold_what_the_targets_hold() -> None:
    args = AppArgs(
        pools=(
            PoolArgs(name="a", num_gpus=1, engine={"kv_tokens": 1000}, num_replicas=3),
            PoolArgs(name="b", engine={"kv_tokens": 501}),
        ),
        drafter_replicas=2,
    )
    config = args.drafter_config()
    assert (config.kv_tokens, config.device) == (1751, "cpu")


@pytest.mark.parametrize(
    ("model", "name", "served"),
    [
        ("bundled", None, "smart-serve-bundled"),
        ("/models/llava-7b/", None, "llava-7b"),
        ("bundled", "mine", "mine"),
    ],
)
def test_the_served_name(model: str, name: str | None, served: str) -> None:
    assert AppArgs(model=model, served_model_name=name).served_name == served


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_build(path: Path) -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text("utf-8")))
    (application,) = schema.applications
    assert application.import_path == "deploy.app:build"
    built = call_user_app_builder_with_args_if_necessary(build, application.args)
    assert isinstance(built, Application)
