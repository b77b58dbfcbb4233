"""What an answer cost, in OpenAI's fields and in ours."""

from __future__ import annotations

import msgspec

from smart_serve.messages import RequestStats


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """Draft tokens that became part of the answer, and those that did not."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class SpeculationUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Our extension: what tree speculation did for this answer. Times in ms."""

    target_steps: int
    tokens_per_step: float
    drafted_tokens: int
    accepted_tokens: int
    tree_sizes: tuple[int, ...]
    """Draft nodes verified in each step."""
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    draft_ms: float
    verify_ms: float
    predicted_speedup: float | None
    """Plain decoding's predicted time over the predicted time of the steps taken."""
    measured_speedup: float | None
    """Plain decoding's predicted time over the measured time of the steps taken."""


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Token counts of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails
    speculation: SpeculationUsage | None = None


def build_usage(
    prompt_tokens: int, completion_tokens: int, accepted_tokens: int, stats: RequestStats | None
) -> Usage:
    """`stats` is None when the answer was cut here, at a stop string, before the engine's end."""
    rejected = max(0, stats.drafted_tokens - stats.accepted_tokens) if stats else 0
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        completion_tokens_details=CompletionTokensDetails(
            accepted_prediction_tokens=stats.accepted_tokens if stats else accepted_tokens,
            rejected_prediction_tokens=rejected,
        ),
        speculation=_speculation(stats) if stats else None,
    )


def _speculation(stats: RequestStats) -> SpeculationUsage:
    return SpeculationUsage(
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
    )


def _ratio(plain_ms: float, taken_ms: float) -> float | None:
    return round(plain_ms / taken_ms, 3) if plain_ms > 0 and taken_ms > 0 else None
