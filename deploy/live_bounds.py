"""What an operator may change while the application runs: the router's `user_config`.

    deployments:
      - name: router
        user_config: {pools: {l4: {max_nodes: 64}, h100: {speculate: false}}}

Serve hands it over without restarting a replica, and the envelopes carry it to every target within
a report. A bound narrows what the pool is configured with; it never widens it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from smart_serve.config import SpeculationConfig
from smart_serve.errors import ConfigError

Bound = Annotated[int, msgspec.Meta(ge=1)]


class LiveBounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one pool; what is not said stays as configured."""

    speculate: bool = True
    """False: the pool decodes plainly."""
    max_nodes: Bound | None = None
    max_depth: Bound | None = None
    top_k: Bound | None = None

    def narrowed(self, config: SpeculationConfig) -> SpeculationConfig:
        """`config` within these bounds."""
        said = {
            name: min(bound, getattr(config, name))
            for name in ("max_nodes", "max_depth", "top_k")
            if (bound := getattr(self, name)) is not None
        }
        policy = config.policy if self.speculate else "off"
        return msgspec.structs.replace(config, policy=policy, **said)


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pools: dict[str, LiveBounds] = {}


def narrowed_by(
    user_config: Mapping[str, Any], configured: Mapping[str, SpeculationConfig]
) -> dict[str, SpeculationConfig]:
    """What each pool may do now. Raises `ConfigError` for what is unknown or ill-typed."""
    try:
        settings = msgspec.convert(dict(user_config), _Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"user_config of the router: {error}") from error
    if unknown := settings.pools.keys() - configured.keys():
        raise ConfigError(f"user_config of the router: no pool is called {sorted(unknown)[0]}")
    standing = LiveBounds()
    return {
        name: settings.pools.get(name, standing).narrowed(config)
        for name, config in configured.items()
    }
