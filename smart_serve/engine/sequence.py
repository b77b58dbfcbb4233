"""One request inside the engine. Mutable; the engine that admitted it owns it."""

from __future__ import annotations

import math
import time
from array import array
from dataclasses import dataclass, field
from enum import Enum, auto

import torch

from smart_serve.messages import FinishReason, GenerateRequest, RequestStats
from smart_serve.models.rope import RopePositions
from smart_serve.step_trace import StepTrace


class State(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


UNKNOWN_ROOT = (math.nan,) * 5


@dataclass(slots=True)
class DraftProgress:
    """How far a sequence's drafter has come. What it has still to see lies in the KV cache: token
    ids here, hidden states in the cache's feature plane."""

    num_sent: int = 0
    """Draft positions that the drafter holds."""
    is_open: bool = False
    """The drafter holds something of this sequence."""
    features_from: int = 0
    """Committed positions before this one were computed when no features were kept."""
    resume_at: int = 0
    """Committed tokens from which the drafter is asked again: it had no room."""

    root_features: tuple[float, ...] = UNKNOWN_ROOT
    """Of the last root whose distributions were both seen; see `engine.root_features`."""

    def lose(self) -> None:
        """The drafter holds nothing any more; the next input opens the sequence again."""
        self.num_sent, self.is_open = 0, False


@dataclass(slots=True)
class StepTally:
    """Running sums behind `RequestStats`."""

    cached_tokens: int = 0
    pre_emptions: int = 0
    target_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    tree_sizes: list[int] = field(default_factory=list)
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    plain_ms: float = 0.0
    predicted_ms: float = 0.0

    def add_cached(self, num_tokens: int) -> None:
        """Prompt tokens found in the cache; what it computed itself before a pre-emption is not
        counted."""
        if self.pre_emptions == 0:
            self.cached_tokens += num_tokens


class Sequence:
    """Tokens, KV blocks and progress of one request."""

    def __init__(
        self,
        sequence_id: int,
        request: GenerateRequest,
        image_features: tuple[torch.Tensor, ...],
        seed: int,
        rope: RopePositions | None = None,
        ends: frozenset[int] = frozenset(),
    ) -> None:
        """`ends`: tokens that end its answer."""
        self.id = sequence_id
        self.request = request
        self.image_features = image_features
        self.seed = seed
        self.rope = rope
        self.ends = ends
        self.tokens: list[int] = list(request.token_ids)
        """Prompt and emitted tokens; the last one is pending: its KV is not in the cache."""
        self.num_prompt = len(request.token_ids)
        self.num_computed = 0
        """Tokens whose KV is committed to the cache."""
        self.blocks: array[int] = array("q")
        self.block_keys: list[bytes] = []
        """Of its first full blocks, as many as were asked for so far."""
        self.num_published = 0
        """So many of its first blocks others can find by their keys."""
        self.state = State.WAITING
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self.draft = DraftProgress()
        self.tally = StepTally()
        self.trace: StepTrace | None = None
        """Of its newest step, if it was a decode step and the request wants to know."""
        self.arrival_s = time.monotonic()
        self.started_s: float | None = None

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_uncomputed(self) -> int:
        """Tokens to run before the next one can be chosen; 1 when decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Its own newest token is pending. The last token of a prompt is not: it may be a
        picture's, whose features only a prefill chunk places."""
        num_tokens = len(self.tokens)  # Asked several times a step, for every sequence.
        return num_tokens == self.num_computed + 1 and num_tokens > self.num_prompt

    def rewind(self) -> None:
        """It holds no KV blocks any more."""
        self.num_computed = self.num_published = 0

    def restart(self) -> None:
        """After its KV blocks were taken: all tokens are to be computed again."""
        self.rewind()
        self.tally.pre_emptions += 1
        self.state = State.WAITING
        self.draft.features_from = 0

    def stats(self) -> RequestStats:
        tally, started = self.tally, self.started_s or self.arrival_s
        return RequestStats(
            prompt_tokens=self.num_prompt,
            completion_tokens=self.num_generated,
            cached_tokens=tally.cached_tokens,
            target_steps=tally.target_steps,
            drafted_tokens=tally.drafted,
            accepted_tokens=tally.accepted,
            tree_sizes=tuple(tally.tree_sizes),
            queue_ms=1e3 * (started - self.arrival_s),
            prefill_ms=tally.prefill_ms,
            decode_ms=tally.decode_ms,
            draft_ms=tally.draft_ms,
            verify_ms=tally.verify_ms,
            plain_ms=tally.plain_ms,
            predicted_ms=tally.predicted_ms,
        )
