"""What the engine is doing, for load reports and health checks."""

from __future__ import annotations

import time

import msgspec

from smart_serve.engine.engine import Engine
from smart_serve.engine.totals import EngineTotals
from smart_serve.speculation.step_cost import StepPrice
from smart_serve.speculation.step_observation import StepObservation


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot."""

    running: int
    waiting: int
    free_blocks: int
    cached_blocks: int
    total_blocks: int
    tokens_per_s: float
    step_ms: float
    draft_ms: float
    verify_ms: float
    accepted_per_step: float
    nodes_per_step: float
    plan_epoch: int
    max_running: int
    block_tokens: int
    batch: float
    token_ms: float
    decode_step_ms: float
    predicted_step_ms: float
    plain_steps: tuple[tuple[int, float], ...]
    prompt_token_ms: float
    learnt_steps: int
    has_drafter: bool
    totals: EngineTotals


class StepRates:
    """Moving averages of the engine's steps, for load reports."""

    _WEIGHT = 0.1

    def __init__(self) -> None:
        self.step_ms = self.draft_ms = self.verify_ms = self.accepted = self.nodes = 0.0
        self.batch = self.token_ms = self.context = 0.0
        self.decode_step_ms = self.predicted_step_ms = 0.0
        self._window_start_s = time.monotonic()
        self._window_tokens = 0
        self._tokens_per_s = 0.0

    def add(
        self, seen: StepObservation | None, num_tokens: int, price: StepPrice | None = None
    ) -> None:
        """One step: what it did (None: it had no decoding sequence), the tokens it emitted, what
        was predicted of it."""
        self._window_tokens += num_tokens
        if seen is None:
            return
        for name, value in (
            ("step_ms", seen.step_ms),
            ("draft_ms", sum(seen.layer_ms)),
            ("verify_ms", seen.verify_ms),
            ("accepted", float(seen.accepted.sum())),
            ("nodes", float(seen.forest.num_nodes)),
        ):
            old = getattr(self, name)
            setattr(self, name, old + self._WEIGHT * (value - old))
        batch = seen.all_decoding
        token_ms = seen.step_ms * batch / (seen.batch + float(seen.accepted.sum()))
        # The router compares these with others' at once: they begin at what was seen first.
        weight = self._WEIGHT if self.batch else 1.0
        self.batch += weight * (batch - self.batch)
        self.token_ms += weight * (token_ms - self.token_ms)
        self.context += weight * (seen.context - self.context)
        if price is not None and seen.is_mostly_decoding:
            self._compare(seen.step_ms, price.predicted.total_ms)

    def _compare(self, measured_ms: float, predicted_ms: float) -> None:
        weight = self._WEIGHT if self.decode_step_ms else 1.0
        self.decode_step_ms += weight * (measured_ms - self.decode_step_ms)
        self.predicted_step_ms += weight * (predicted_ms - self.predicted_step_ms)

    def tokens_per_s(self) -> float:
        """Over the last second or so."""
        now = time.monotonic()
        elapsed = now - self._window_start_s
        if elapsed >= 1.0:
            self._tokens_per_s = self._window_tokens / elapsed
            self._window_start_s, self._window_tokens = now, 0
        return self._tokens_per_s

    def load(self, engine: Engine) -> EngineLoad:
        """The averages beside the engine's counts and its controller's prices."""
        scheduler, controller = engine.scheduler, engine.controller
        places = scheduler.max_running
        batches = sorted({1, max(1, places // 4), places})
        return EngineLoad(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_blocks=scheduler.pool.free,
            cached_blocks=scheduler.pool.cached,
            total_blocks=scheduler.pool.total,
            tokens_per_s=self.tokens_per_s(),
            step_ms=self.step_ms,
            draft_ms=self.draft_ms,
            verify_ms=self.verify_ms,
            accepted_per_step=self.accepted,
            nodes_per_step=self.nodes,
            plan_epoch=controller.plan_epoch,
            max_running=places,
            block_tokens=scheduler.pool.block_tokens,
            batch=self.batch,
            token_ms=self.token_ms,
            decode_step_ms=self.decode_step_ms,
            predicted_step_ms=self.predicted_step_ms,
            plain_steps=tuple(
                (b, controller.prices.plain_step_ms(b, self.context)) for b in batches
            ),
            prompt_token_ms=controller.prices.prompt_token_ms(self.context),
            learnt_steps=controller.learnt_steps,
            has_drafter=engine.drafting.drafter is not None,
            totals=engine.totals.copy(),
        )
