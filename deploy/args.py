"""What an operator may say when the application is built; anything else is an error."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, Self, get_args

import msgspec
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deploy.node_choice import NodeChoice
from smart_serve.config import DtypeName, EngineConfig
from smart_serve.errors import ConfigError
from smart_serve.limits import Limits
from smart_serve.routing.assign import Offer
from vision.fetch import HOST_RULE

Part = Literal["drafter", "vision", "ingress"]
PARTS: tuple[Part, ...] = get_args(Part)
BUNDLED_NAME = "smart-serve-bundled"


class PoolArgs(NodeChoice):
    """Target replicas of one kind. One deployment each, so that a GPU type has its own engine."""

    name: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    """In lower case, with digits and hyphens. Its deployment is `target-<name>`."""
    num_replicas: int = Field(default=1, ge=1)
    """Engines of this kind, each with the whole model and a KV cache of its own."""
    min_replicas: int | None = Field(default=None, ge=0)
    """Null: `num_replicas`. With `max_replicas` the pool is scaled between the two; 0: it may be
    empty (see `deploy.autoscaling`)."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Null: `num_replicas`."""
    price_per_hour: float = Field(default=1.0, ge=0)
    """Of one replica, in any currency: requests go where they are done soonest for their money."""
    num_cpus: float = Field(default=0.5, gt=0)
    """What Ray reserves for each replica on its node."""
    num_gpus: float = Field(default=0, ge=0)
    """Reserved for each replica; 0: it runs on the CPU. A fraction shares a GPU."""
    num_threads: int | None = Field(default=None, ge=1)
    """Of torch on the CPU; null: all cores but one."""
    engine: dict[str, Any] = Field(default={})
    """Fields of `EngineConfig` for this pool, for instance `{"kv_tokens": 400000}`."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most replicas."""
        fewest = self.num_replicas if self.min_replicas is None else self.min_replicas
        return fewest, self.num_replicas if self.max_replicas is None else self.max_replicas

    @model_validator(mode="after")
    def _check(self) -> Self:
        fewest, most = self.bounds
        if fewest > most:
            raise ValueError(f"pool {self.name}: min_replicas {fewest} is more than {most}")
        return self


class AppArgs(BaseModel):
    """Arguments of `deploy.app:build`. The defaults fit a laptop with two cores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "bundled"
    """A model folder, the name of a model on the Hugging Face hub, or "bundled"."""
    drafter: str | None = "bundled"
    """As `LLM` has it: a drafter folder, "bundled", "draft_model:FOLDER" or "ngram"; null for plain
    decoding."""
    served_model_name: str | None = None
    """The model's name in the API; null: the last part of `model`, or "smart-serve-bundled"."""
    policy: str = "smart"
    """How requests are drafted for that do not say it themselves (see the policies)."""
    dtype: DtypeName = "auto"
    """auto: bfloat16 where a deployment has GPUs, else float32."""
    device: str = "auto"
    """auto: cuda where a deployment has GPUs, else cpu."""
    engine: dict[str, Any] = {}
    """Fields of `EngineConfig` for all pools."""
    pools: tuple[PoolArgs, ...] = Field(default=(PoolArgs(),), min_length=1)
    """Kinds of target replicas; one for each type of GPU."""
    limits: dict[str, Any] = {}
    """Fields of `Limits`: what one request, and one replica, may use."""

    image_domains: tuple[Annotated[str, Field(pattern=HOST_RULE)], ...] = ()
    """Hosts from which pictures may be fetched by https (see `vision.fetch`); none: never."""
    api_keys_file: str | None = None
    """Who may call the HTTP API (see `deploy.keys`); read where the application is built."""
    log_format: Literal["text", "json"] = "text"
    """json: every line of every replica is one JSON object."""

    drafter_mode: Literal["remote", "colocated"] = "remote"
    """remote: a deployment of its own; colocated: inside each target."""
    drafter_network: Literal["node", "local"] = "node"
    """node: reachable by TCP from other nodes; local: by a Unix socket on its own node only."""
    drafter_replicas: int = Field(default=1, ge=1)
    """Each serves several targets at once. Not used by colocated drafters, nor by "ngram"."""
    drafter_max_replicas: int | None = Field(default=None, ge=1)
    """How far autoscaling may go; null: `drafter_replicas`, always."""
    drafter_cpus: float = Field(default=0.3, gt=0)
    """What Ray reserves for each drafter replica."""
    drafter_gpus: float = Field(default=0, ge=0)
    """Reserved for each drafter replica; 0: it runs on the CPU."""

    vision_replicas: int = Field(default=1, ge=1)
    """Encoders of pictures; each keeps the features of the pictures that it saw last."""
    vision_max_replicas: int | None = Field(default=None, ge=1)
    """As with drafters."""
    vision_cpus: float = Field(default=0.2, gt=0)
    """What Ray reserves for each vision encoder."""
    vision_gpus: float = Field(default=0, ge=0)
    """Reserved for each vision encoder; 0: it runs on the CPU."""
    ingress_replicas: int = Field(default=1, ge=1)
    """They check requests, make tokens of them, and text of the answers' tokens."""
    ingress_max_replicas: int | None = Field(default=None, ge=1)
    """As with drafters."""
    ingress_cpus: float = Field(default=0.2, gt=0)
    """What Ray reserves for each ingress replica."""
    router_replicas: int = Field(default=1, ge=1)
    """Each hears from every target. What one assigns, the others learn from the next reports."""
    router_cpus: float = Field(default=0.1, gt=0)
    """What Ray reserves for the router."""
    drafter_nodes: NodeChoice = NodeChoice()
    """Where drafters stand."""
    vision_nodes: NodeChoice = NodeChoice()
    """Where vision encoders stand."""
    drain_s: float = Field(default=60.0, ge=0)
    """How long a target that is being replaced may finish its streams; what is left then goes on at
    another. An ingress finishes them all."""
    surge_percent: int = Field(default=0, ge=0, le=100)
    """Replicas that an update starts beyond their number before it stops old ones. The cluster must
    have room for them, or the update waits; 0: old ones go first, and their requests elsewhere."""

    @field_validator("drafter", mode="before")
    @classmethod
    def _no_drafter(cls, value: object) -> object:
        # On a command line there is no null.
        return None if value in ("null", "none", "None") else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [pool.name for pool in self.pools]
        if len(set(names)) != len(names):
            raise ValueError("two pools have the same name")
        for part in PARTS:
            fewest, most = self.bounds(part)
            if fewest > most:
                raise ValueError(f"{part}_replicas is more than {part}_max_replicas")
        self.parsed_limits()
        for pool in self.pools:
            self.engine_config(pool)
        return self

    @property
    def served_name(self) -> str:
        """The model's name in the API."""
        if self.served_model_name is not None:
            return self.served_model_name
        return BUNDLED_NAME if self.model == "bundled" else os.path.basename(self.model.rstrip("/"))

    @property
    def drafts_remotely(self) -> bool:
        # Prompt lookup costs less than the hop to another process.
        return self.drafter not in (None, "ngram") and self.drafter_mode == "remote"

    def parsed_limits(self) -> Limits:
        """Raises `ValueError` for an unknown or ill-typed limit."""
        return msgspec.convert(self.limits, Limits, strict=False)

    def bounds(self, part: Part) -> tuple[int, int]:
        """Fewest and most replicas."""
        fewest: int = getattr(self, f"{part}_replicas")
        most: int | None = getattr(self, f"{part}_max_replicas")
        return fewest, fewest if most is None else most

    def offers(self) -> tuple[Offer, ...]:
        """What the router chooses from."""
        return tuple(Offer(pool.name, pool.price_per_hour) for pool in self.pools)

    def device_for(self, num_gpus: float) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if num_gpus > 0 else "cpu"

    def engine_config(self, pool: PoolArgs) -> EngineConfig:
        """The engine of one pool. Raises `ValueError` for an unknown or ill-typed field."""
        limits = self.parsed_limits()
        fields: dict[str, Any] = {
            "dtype": self.dtype,
            "device": self.device_for(pool.num_gpus),
            "max_running": limits.max_running,
            "max_waiting": limits.max_waiting,
            **self.engine,
            **pool.engine,
        }
        speculation = {
            "policy": self.policy,
            **self.engine.get("speculation", {}),
            **pool.engine.get("speculation", {}),
        }
        fields["speculation"] = speculation
        try:
            return msgspec.convert(fields, EngineConfig, strict=False)
        except ConfigError as error:
            raise ValueError(error.message) from error

    def drafter_config(self) -> EngineConfig:
        """Of a drafter replica. Its cache holds its share of what all targets together hold: a
        sequence without room there is decoded without drafts."""
        configs = [(self.engine_config(pool), pool.bounds[1]) for pool in self.pools]
        kv_tokens = sum(config.kv_tokens * replicas for config, replicas in configs)
        return msgspec.structs.replace(
            configs[0][0],
            device=self.device_for(self.drafter_gpus),
            kv_tokens=-(-kv_tokens // self.drafter_replicas),
        )
