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
    stats = _total(choices)
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
        speculation=SpeculationUsage(
            target_steps=stats.target_steps,
            tokens_per_step=round(stats.tokens_per_step, 3),
            drafted_tokens=stats.drafted_tokens,
            accepted_tokens=stats.accepted_tokens,
            tree_sizes=stats.tree_sizes,
            queue_ms=stats.queue_ms,
            prefill_ms=stats.prefill_ms,
            decode_ms=stats.decode_ms,
            draft_ms=stats.draft_ms,
            verify_ms=stats.verify_ms,
            predicted_speedup=_ratio(stats.plain_ms, stats.predicted_ms),
            measured_speedup=_ratio(stats.plain_ms, stats.decode_ms),
        ),
    )


def _total(choices: Sequence[RequestStats]) -> RequestStats:
    """Every field is a count, a time or a list of steps: all add up."""
    fields = RequestStats.__struct_fields__
    sums = {
        name: functools.reduce(operator.add, (getattr(stats, name) for stats in choices))
        for name in fields
    }
    return RequestStats(**sums)


def _ratio(plain_ms: float, taken_ms: float) -> float | None:
    return round(plain_ms / taken_ms, 3) if plain_ms > 0 and taken_ms > 0 else None
