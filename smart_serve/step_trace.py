"""What one step did for a request that asked to be told."""

from __future__ import annotations

from typing import Literal

import msgspec

NodeFate = Literal["pruned", "rejected", "accepted"]
"""Of a draft node: not worth verifying; verified, and the target chose otherwise; part of the
answer."""


class TracedNode(msgspec.Struct, frozen=True, array_like=True):
    """One draft node of a traced step."""

    token_id: int
    parent: int
    """Row of its parent: 0 is the root, the token emitted last before the step; n is the n-th node.
    Parents come before children."""
    path_prob: float
    """How likely, by the controller's belief, the target accepts the path to it."""
    fate: NodeFate


class StepTrace(msgspec.Struct, frozen=True, kw_only=True):
    """What one step did for one request. Times in ms, of the step of the whole batch."""

    policy: str
    batch: int
    """Sequences that decoded together."""
    batch_nodes: int
    """Draft nodes verified in the step, over the batch."""
    nodes: tuple[TracedNode, ...]
    draft_ms: float
    verify_ms: float
    step_ms: float
    predicted_ms: float
    plain_ms: float
    """Predicted for a step without drafts at this batch."""
