"""Everything that crosses a process boundary: frozen, tagged structs; types only."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from smart_serve.config import POLICY_NAMES, VERIFICATION_RULES, is_policy, rule_objection
from smart_serve.errors import ClientError
from smart_serve.step_trace import StepTrace

FinishReason = Literal["stop", "length", "error", "cancelled"]
MAX_LOGPROBS = 20
"""The OpenAI API's bound of `top_logprobs`."""


class SamplingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the next token is chosen. `temperature=0` is greedy.

    With a `seed`, tokens depend on (seed, prompt) alone: not on the batch, the draft tree, the
    policy or the replica. Without one the engine draws a seed.
    """

    max_tokens: int = 64
    """Of the answer, its end included."""
    temperature: float = 0.0
    """0 to 2. Logits are divided by it before the cuts; 0 takes the likeliest token."""
    top_p: float = 1.0
    """The likeliest tokens that together have this probability are kept (nucleus)."""
    top_k: int = 0
    """So many of the likeliest tokens are kept; 0: no limit."""
    min_p: float = 0.0
    """Tokens less likely than this share of the most likely one are cut, before top-k and top-p."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or the answer."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time that the answer holds the token."""
    logit_bias: dict[int, float] = {}
    """Added to the logits of these tokens, before all penalties."""
    logprobs: int | None = None
    """Give every token's log-probability, and those of this many likeliest tokens at its place."""
    seed: int | None = None
    """Of the draws at each place of the answer."""
    stop: tuple[str, ...] = ()
    """Text that ends the answer; it is not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer beside the model's own."""
    ignore_eos: bool = False
    """The model's own end does not end the answer; for benchmarks."""
    policy: str | None = None
    """Speculation policy of this request; None: the engine's."""
    verification: str = "match"
    """How drafted tokens are accepted (see `VERIFICATION_RULES`). All rules keep the target's
    distribution. `match` alone keeps the very tokens that the seed gives without a drafter; the
    others accept more of what was drawn, need a policy that draws, and with one seed give the same
    tokens only where everything else is the same."""

    def __post_init__(self) -> None:
        def check(ok: bool, param: str, rule: str) -> None:
            if not ok:
                raise ClientError(f"{param} must be {rule}", param=param)

        check(self.max_tokens >= 1, "max_tokens", "at least 1")
        ok = math.isfinite(self.temperature) and 0.0 <= self.temperature <= 2.0
        check(ok, "temperature", "between 0 and 2")
        check(math.isfinite(self.top_p) and 0.0 < self.top_p <= 1.0, "top_p", "in (0, 1]")
        check(0 <= self.top_k < 2**31, "top_k", "0 (no limit) or more, in 31 bits")
        check(0.0 <= self.min_p <= 1.0, "min_p", "between 0 and 1")
        # The ranges of the OpenAI API, and vLLM's for the repetition penalty, which it lacks.
        check(0.0 < self.repetition_penalty <= 2.0, "repetition_penalty", "in (0, 2]")
        for name in ("presence_penalty", "frequency_penalty"):
            check(-2.0 <= getattr(self, name) <= 2.0, name, "between -2 and 2")
        ok = all(token >= 0 and -100.0 <= bias <= 100.0 for token, bias in self.logit_bias.items())
        check(ok, "logit_bias", "token ids with biases between -100 and 100")
        ok = self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS
        check(ok, "logprobs", f"between 0 and {MAX_LOGPROBS}")
        ok = self.seed is None or -(2**63) <= self.seed < 2**63
        check(ok, "seed", "a 64-bit integer")
        check(all(self.stop), "stop", "non-empty strings")
        ok = self.policy is None or is_policy(self.policy)
        check(ok, "policy", f"one of {', '.join(POLICY_NAMES)}")
        ok = self.verification in VERIFICATION_RULES
        check(ok, "verification", f"one of {', '.join(VERIFICATION_RULES)}")
        if self.policy is not None:
            self.check_verification(self.policy)

    def check_verification(self, policy: str) -> None:
        """Raises `ClientError` if trees of `policy` must not be verified as asked."""
        objection = rule_objection(self.verification, policy)
        if objection is not None:
            raise ClientError(objection, param="verification")

    @property
    def changes_logits(self) -> bool:
        """Whether a bias or a penalty is asked for."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return bool(self.logit_bias) or penalties != (1.0, 0.0, 0.0)


class ImageSpan(msgspec.Struct, frozen=True, array_like=True):
    """Where one picture's features stand in the prompt."""

    start: int
    """Index of its first token."""
    length: int
    """Number of image tokens."""
    content_hash: str
    """Of the checked picture's bytes; features and prefixes are shared by it."""
    grid: tuple[int, int] | None = None
    """Rows and columns of its tokens, where the model's positions tell them apart (M-RoPE)."""


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine is asked for: token ids and the place of each picture. No text."""

    request_id: str
    token_ids: tuple[int, ...]
    image_spans: tuple[ImageSpan, ...] = ()
    num_resumed: int = 0
    """How many of the last tokens were generated, by a replica that is gone: to the penalties they
    are part of the answer."""
    sampling: SamplingParams = SamplingParams()
    trace: bool = False
    """Tell of each decode step what was drafted and what became of it."""
    trace_parent: str | None = None
    """The span that asks (W3C Trace Context), for spans below it; None: nobody records any."""


class RequestStats(msgspec.Struct, frozen=True, kw_only=True):
    """What speculation did for one request. Times in ms."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were in the cache already."""
    target_steps: int = 0
    """Forward passes of the target that emitted tokens of this request."""
    drafted_tokens: int = 0
    """Draft nodes verified for this request."""
    accepted_tokens: int = 0
    """Draft nodes accepted (the bonus tokens are not counted)."""
    tree_sizes: tuple[int, ...] = ()
    """Draft nodes verified in each target step."""
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    """Wall clock of this request's decode steps."""
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    plain_ms: float = 0.0
    """What the same tokens would have cost in plain decoding at the same batch, by the measured
    cost table."""
    predicted_ms: float = 0.0
    """What the cost model predicted for the steps taken."""

    def __add__(self, other: RequestStats) -> RequestStats:
        """Every field is a count, a time or a list of steps."""
        names = self.__struct_fields__
        return RequestStats(**{one: getattr(self, one) + getattr(other, one) for one in names})

    @property
    def tokens_per_step(self) -> float:
        return round(self.completion_tokens / max(1, self.target_steps), 3)

    @property
    def predicted_speedup(self) -> float | None:
        """Plain decoding's predicted time over the predicted time of the steps taken."""
        return _speedup(self.plain_ms, self.predicted_ms)

    @property
    def measured_speedup(self) -> float | None:
        """The same over their measured time."""
        return _speedup(self.plain_ms, self.decode_ms)


def _speedup(plain_ms: float, taken_ms: float) -> float | None:
    return round(plain_ms / taken_ms, 3) if plain_ms > 0 and taken_ms > 0 else None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural log-probabilities of the model itself at one token's place: before bias, penalties,
    temperature and cuts, as vLLM gives them by default."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest (token id, log-probability), best first; the emitted one may not be there."""


class TokenChunk(msgspec.Struct, frozen=True, kw_only=True):
    """What one step, or several in turn, emitted for one request; the last one carries reason and
    stats.

    A request with stop strings may end at any chunk, so each of its chunks has the stats so far.
    """

    token_ids: tuple[int, ...]
    num_accepted: int = 0
    """How many of them a draft tree had foreseen."""
    num_steps: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token, if they were asked for."""
    finish_reason: FinishReason | None = None
    stats: RequestStats | None = None
    error: str | None = None
    """Our own words, when `finish_reason` is "error"."""
    trace: StepTrace | None = None
    """If it was asked for and the step was a decode step."""


NOTHING = TokenChunk(token_ids=())
"""A sign of life: no step, and no news."""


class CalibrationCounts(msgspec.Struct, frozen=True):
    """Draft nodes by depth and confidence: how many were judged, and how many of them accepted.

    Both are float32 [depths, knots] of `smart_serve.speculation.calibration`.
    """

    seen: bytes
    accepted: bytes

    @property
    def size(self) -> int:
        """In bytes; 0: these are no counts at all."""
        return len(self.seen) if len(self.seen) == len(self.accepted) else 0


class SpeculationPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The router's envelope for one target replica; SMART sizes trees within it."""

    policy: str = "smart"
    max_nodes: int = 512
    """Draft nodes of one step, over the batch."""
    max_depth: int = 12
    top_k: int = 10
    draft_cost_factor: float = 1.0
    """The drafter's predicted slow-down under the load that all targets put on it."""
    epoch: int = 0
    ttl_ms: float = 1000.0
    """After this the replica plans for itself."""
    report_every_ms: float = 100.0
    """A router that hears from many asks each to speak less often."""
    calibration: CalibrationCounts | None = None
    """What the other replicas have learnt, for one that has learnt nothing yet."""
    reason: str = ""
    """Why this envelope, for people."""


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a target replica tells the router every 100 ms."""

    replica_id: str
    pool: str
    device_type: str
    """As the node is labelled: "H100"; "cpu" where there is no label."""
    running: int
    """Sequences in the batch."""
    waiting: int
    """Sequences queued for it."""
    free_blocks: int
    """KV blocks that a new sequence may take, those kept for their prefix included."""
    total_blocks: int
    tokens_per_s: float
    """Over the last second or so."""
    step_ms: float
    """Moving average of one step's wall clock; so are the next four."""
    draft_ms: float
    """Of a step, for drafting, the way to the drafter left out."""
    verify_ms: float
    """Of a step, for the target's forward."""
    accepted_per_step: float
    """Draft tokens accepted, over the batch."""
    nodes_per_step: float
    """Draft nodes verified, over the batch."""
    plan_epoch: int
    """Of the router's last envelope that it obeys."""
    max_running: int = 64
    """Places in its batch."""
    block_tokens: int = 16
    batch: float = 0.0
    """Moving average of the decoding batch."""
    token_ms: float = 0.0
    """Moving average of the time between two tokens of one sequence; 0: there was none yet."""
    decode_step_ms: float = 0.0
    """Moving average of the steps that the cost tables speak of, those of little prefill; 0: there
    was none yet."""
    predicted_step_ms: float = 0.0
    """What the corrected tables had said of these."""
    plain_steps: tuple[tuple[int, float], ...] = ()
    """(batch, ms) of a step of plain decoding, rising: the corrected cost table in brief."""
    prompt_token_ms: float = 0.0
    """What one more prompt token costs."""
    drafter_id: str | None = None
    """The shared drafter that it leases; None: it has one of its own, or none."""
    prefixes: tuple[int, ...] = ()
    """Names of prefixes that it served lately (see `smart_serve.routing.prefixes`)."""
    learnt_steps: int = 0
    """Drafted steps that it has learnt from."""
    calibration: CalibrationCounts | None = None
    """Now and then, what it has learnt. At first, nothing, by which its size is known."""


class PrefixKey(msgspec.Struct, frozen=True, array_like=True):
    """One prefix of a prompt: how long it is, and a 64-bit name that depends on all of it."""

    num_tokens: int
    name: int


class RequestShape(msgspec.Struct, frozen=True, kw_only=True):
    """What the router needs to know of a request."""

    prompt_tokens: int
    max_tokens: int
    prefixes: tuple[PrefixKey, ...] = ()
    """The longest first."""


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request goes."""

    pool: str
    reason: str
    replica: str | None = None
    """The one to be preferred there, for what it has cached; None: any."""
