"""What a request says about sampling and delivery, checked against the server's limits."""

from __future__ import annotations

from typing import Any

import msgspec

from smart_serve.config import POLICY_NAMES, VERIFICATION_RULES, is_policy, rule_objection
from smart_serve.errors import ClientError
from smart_serve.limits import Limits
from smart_serve.messages import SamplingParams
from smart_serve.openai.schema import GenerationOptions, SpeculationOptions, StreamOptions
from smart_serve.openai.usage import UsageEvents

_SEEDS = 2**64
_AS_GIVEN = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
)
"""Fields that `SamplingParams` has by the same name, and checks."""


class AnswerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How each choice is sampled, how many there are, and how they are sent."""

    sampling: SamplingParams
    max_tokens_given: bool = True
    """False: `sampling.max_tokens` is only the server's limit; see `choices`."""
    num_choices: int = 1
    stream: bool = False
    usage: UsageEvents = "none"
    trace: bool = False

    def choices(self, prompt_tokens: int, context: int) -> tuple[SamplingParams, ...]:
        """Sampling of each choice. An unasked-for limit fits in the context; what was asked for
        stays. Every choice has a seed of its own."""
        chosen = self.sampling
        if not self.max_tokens_given:
            room = max(1, context - prompt_tokens)
            chosen = msgspec.structs.replace(chosen, max_tokens=min(chosen.max_tokens, room))
        seed = chosen.seed
        if seed is None:
            return (chosen,) * self.num_choices
        return tuple(
            msgspec.structs.replace(chosen, seed=(seed + i + _SEEDS // 2) % _SEEDS - _SEEDS // 2)
            for i in range(self.num_choices)
        )


def parse_options(
    request: GenerationOptions,
    limits: Limits,
    logprobs: int | None,
    max_completion_tokens: int | None = None,
) -> AnswerOptions:
    """What differs between the two requests comes apart from them; `max_completion_tokens` is the
    chat API's newer name of `max_tokens`. Errors: ClientError."""
    stop = _stop_strings(request, limits)
    max_tokens = _max_tokens(request.max_tokens, max_completion_tokens, limits)
    _check_options(request, limits)
    wanted = request.speculation or SpeculationOptions()
    return AnswerOptions(
        sampling=SamplingParams(
            max_tokens=max_tokens or limits.max_completion_tokens,
            stop=stop,
            policy=wanted.policy,
            verification=wanted.verification or "match",
            logprobs=logprobs,
            **_as_given(request),
        ),
        max_tokens_given=max_tokens is not None,
        num_choices=1 if request.n is None else request.n,
        stream=bool(request.stream),
        usage=_usage_events(request.stream_options),
        trace=wanted.trace,
    )


def _usage_events(wanted: StreamOptions | None) -> UsageEvents:
    if wanted is None or not wanted.include_usage:
        return "none"
    return "every" if wanted.continuous_usage_stats else "last"


def _check_options(request: GenerationOptions, limits: Limits) -> None:
    if request.n is not None and not 1 <= request.n <= limits.max_choices:
        message = f"n must be between 1 and {limits.max_choices}"
        raise ClientError(message, code="invalid_value", param="n")
    if request.stream_options is not None and not request.stream:
        message = "stream_options needs stream = true"
        raise ClientError(message, code="invalid_value", param="stream_options")
    if len(request.logit_bias or {}) > limits.max_logit_bias:
        message = f"more than {limits.max_logit_bias} tokens in logit_bias"
        raise ClientError(message, code="invalid_value", param="logit_bias")
    if request.speculation is not None:
        _check_speculation(request.speculation)
        if request.speculation.trace and not request.stream:
            message = "a trace needs stream = true"
            raise ClientError(message, code="invalid_value", param="speculation.trace")


def _check_speculation(wanted: SpeculationOptions) -> None:
    policy, rule = wanted.policy, wanted.verification or "match"
    if policy is not None and not is_policy(policy):
        message = f"the speculation policy must be one of {', '.join(POLICY_NAMES)}"
        raise ClientError(message, code="invalid_value", param="speculation.policy")
    objection = None if policy is None else rule_objection(rule, policy)
    if rule not in VERIFICATION_RULES:
        objection = f"the verification rule must be one of {', '.join(VERIFICATION_RULES)}"
    if objection is not None:
        raise ClientError(objection, code="invalid_value", param="speculation.verification")


def _stop_strings(request: GenerationOptions, limits: Limits) -> tuple[str, ...]:
    stop = request.stop
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > limits.max_stop_strings:
        message = f"{len(stops)} stop strings; the limit is {limits.max_stop_strings}"
        raise ClientError(message, code="invalid_value", param="stop")
    if any(len(text) > limits.max_stop_chars for text in stops):
        message = f"a stop string is longer than {limits.max_stop_chars} characters"
        raise ClientError(message, code="invalid_value", param="stop")
    return stops


def _max_tokens(older: int | None, newer: int | None, limits: Limits) -> int | None:
    given, param = (older, "max_tokens") if newer is None else (newer, "max_completion_tokens")
    if older not in (None, given):
        message = "max_tokens and max_completion_tokens differ; give one of them"
        raise ClientError(message, code="invalid_value", param="max_tokens")
    if given is not None and not 1 <= given <= limits.max_completion_tokens:
        message = f"{param} must be between 1 and {limits.max_completion_tokens}"
        raise ClientError(message, code="invalid_value", param=param)
    return given


def _as_given(request: GenerationOptions) -> dict[str, Any]:
    # The API's own default is 1; the library's is greedy.
    given: dict[str, Any] = {"temperature": 1.0}
    for name in _AS_GIVEN:
        if (value := getattr(request, name)) is not None:
            given[name] = value
    return given
