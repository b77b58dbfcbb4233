"""What an answer cost, in OpenAI's fields and in ours."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Literal

import msgspec

from smart_serve.messages import RequestStats

UsageEvents = Literal["none", "last", "every"]
"""Which events of a stream tell the usage."""


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """Draft tokens that became part of the answer, and those that did not."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Prompt tokens whose keys and values were in the cache already: for all of the choices."""

    cached_tokens: int


class SpeculationUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Our extension: what tree speculation did for this answer; sums over choices. Times in ms."""

    target_steps: int
    """Forward passes of the target that emitted tokens of this answer."""
    tokens_per_step: float
    drafted_tokens: int
    """Draft nodes verified."""
    accepted_tokens: int
    """Draft nodes accepted; the tokens that the target added itself are not counted."""
    tree_sizes: tuple[int, ...]
    """Draft nodes verified in each step, choice after choice."""
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    draft_ms: float
    verify_ms: float
    predicted_speedup: float | None
    """Plain decoding's predicted time over the predicted time of the steps taken."""
    measured_speedup: float | None
    """Plain decoding's predicted time over the measured time of the steps taken."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one request; its prompt counts once, whatever the number of choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    speculation: SpeculationUsage


def build_usage(prompt_tokens: int, choices: Sequence[RequestStats]) -> Usage:
    """`choices`: the stats of each, of at least one."""
    stats = functools.reduce(operator.add, choices)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=stats.completion_tokens,
        total_tokens=prompt_tokens + stats.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            # A request that goes on elsewhere has the answer so far in its prompt.
            cached_tokens=min(prompt_tokens, *(stats.cached_tokens for stats in choices)),
        ),
        completion_tokens_details=CompletionTokensDetails(
            accepted_prediction_tokens=stats.accepted_tokens,
            rejected_prediction_tokens=max(0, stats.drafted_tokens - stats.accepted_tokens),
        ),
        speculation=msgspec.convert(stats, SpeculationUsage, from_attributes=True),
    )
