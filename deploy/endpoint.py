"""Where a drafter replica listens: published through Serve, read by the targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


class Endpoint(msgspec.Struct, frozen=True):
    """One drafter replica's address on the step channel."""

    node_id: str
    unix_path: str
    host: str | None
    """None: it can be reached on its own node only."""
    port: int | None
    protocol_version: int
    accelerator_type: str

    def as_metadata(self) -> dict[str, Any]:
        """As Serve carries it."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields

    @staticmethod
    def from_metadata(metadata: dict[str, Any]) -> Endpoint:
        """Raises `msgspec.ValidationError` when a replica published something else."""
        return msgspec.convert(metadata, Endpoint)

    def unix_path_from(self, node_id: str) -> Path | None:
        """The Unix socket, if seen from the same node."""
        return Path(self.unix_path) if node_id == self.node_id else None

    @property
    def address(self) -> tuple[str, int] | None:
        return None if self.host is None or self.port is None else (self.host, self.port)
