"""The messages of the step channel. Types only; `PROTOCOL_VERSION` changes with any of them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from smart_serve.drafters.protocol import VectorKind
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.plan import GrowthPlan

PROTOCOL_VERSION = 7

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Challenge(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Server's first word."""

    version: int
    nonce: bytes


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Client proves that it knows the secret, and asks the same of the server."""

    version: int
    nonce: bytes
    mac: bytes


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Server's proof, and what the target must know of the drafter."""

    mac: bytes
    kind: str
    vectors: VectorKind
    vector_size: int | None
    capture_layers: tuple[int, ...]
    layer_cost: Curve


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Server will not talk to this client; it closes after this."""

    reason: str


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Asks for a `Pong` of the same number: measures the bare round trip."""

    number: int


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=True):
    number: int


class Propose(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One step's `DraftBatch`, its B inputs laid end to end. Arrays:

    - token ids, [N] int64
    - positions, [3, N] int64, if `has_positions`
    - vectors, [R, `Welcome.vector_size`] of `vector_dtype`
    """

    number: int
    sequence_ids: tuple[Natural, ...]
    """[B]; each connection has its own name space."""
    starts: tuple[Natural, ...]
    """[B]"""
    counts: tuple[Natural, ...]
    """[B], tokens of each input; they sum to N."""
    vector_counts: tuple[Natural, ...]
    """[B], vectors of each input; they sum to R. Empty where the drafter wants none."""
    vector_dtype: str | None
    """None when R is 0."""
    growth: GrowthPlan
    has_positions: bool = False
    """Of targets with M-RoPE."""
    trace_parents: tuple[tuple[int, str], ...] = ()
    """Of inputs that open a traced sequence: their index, and `DraftInput.trace_parent`."""


class Trees(msgspec.Struct, frozen=True, array_like=True):
    """A `Forest`, whose columns are arrays in the order of its fields."""

    num_trees: Natural
    num_nodes: Natural


class Laws(msgspec.Struct, frozen=True, array_like=True):
    """`DraftLaws`, whose columns are arrays in the order of its fields."""

    num_rows: Natural
    num_tokens: Natural
    """Of each row."""
    num_draws: Natural
    with_replacement: bool


class Proposed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The `Proposal` that answers `Propose` of the same number. Arrays: those of `forest`, `laws`
    and `considered`."""

    number: int
    forest: Trees
    best_by_depth: tuple[tuple[float, ...], ...]
    child_mass: tuple[float, ...]
    unknown: tuple[int, ...]
    layer_ms: tuple[float, ...]
    layer_rows: tuple[int, ...]
    laws: Laws | None
    considered: Trees | None


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The drafter could not answer `Propose` of this number; the connection goes on."""

    number: int
    reason: str


class Close(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Forget these sequences; not answered."""

    sequence_ids: tuple[int, ...]


ClientMessage = Answer | Ping | Propose | Close
ServerMessage = Challenge | Welcome | Refusal | Pong | Proposed | Failed
