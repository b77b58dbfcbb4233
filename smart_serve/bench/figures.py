"""What a benchmark measured, as it is written to JSON."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version

import msgspec
import numpy as np

from smart_serve.bench.roof import Roof
from smart_serve.machine import processor_name, usable_cores
from smart_serve.speculation.cost import CostTable, Curve

WITHIN = 0.15
"""Of the measured time: a prediction that is no further off counts as right."""


class Spread(msgspec.Struct, frozen=True):
    """Median and deciles of a ratio over the rounds."""

    median: float
    p10: float
    p90: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        low, high = np.percentile(values, (10, 90)).tolist()
        return Spread(statistics.median(values), low, high)


class Percentiles(msgspec.Struct, frozen=True):
    """Of a latency, in ms."""

    p50: float
    p95: float
    p99: float

    @staticmethod
    def of(values: Sequence[float]) -> Percentiles | None:
        return Percentiles(*np.percentile(values, (50, 95, 99)).tolist()) if values else None


class TimeSplit(msgspec.Struct, frozen=True, kw_only=True):
    """Where wall clock went, in ms (of a sample) or in shares (of a row)."""

    draft: float = 0.0
    """The drafter's passes."""
    wire: float = 0.0
    """Handing the drafter its work and taking the trees back."""
    verify: float = 0.0
    """Packing, the target's forward and the draw."""
    controller: float = 0.0
    """Planning, growing and choosing trees, learning from the step."""
    other: float = 0.0

    def __add__(self, more: TimeSplit) -> TimeSplit:
        sums = {f: getattr(self, f) + getattr(more, f) for f in self.__struct_fields__}
        return TimeSplit(**sums)

    @property
    def total(self) -> float:
        return float(sum(getattr(self, field) for field in self.__struct_fields__))

    def shares(self) -> TimeSplit:
        total = max(self.total, 1e-9)
        return TimeSplit(**{f: getattr(self, f) / total for f in self.__struct_fields__})


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's run over the workload in one round."""

    tokens: int
    elapsed_s: float
    steps: int = 0
    nodes: int = 0
    sequence_steps: int = 0
    """Steps counted once per sequence that took part."""
    time_ms: TimeSplit = TimeSplit()
    decode_ms: TimeSplit = TimeSplit()
    """Of the steps without prefill."""
    least_ms: TimeSplit = TimeSplit()
    """What drafting and verifying in these steps cannot take less than; `roof.Limit`."""
    predicted_over_measured: tuple[float, ...] = ()
    """Of each step without prefill rows."""
    first_token_ms: tuple[float, ...] = ()
    between_tokens_ms: tuple[float, ...] = ()
    """One for each token after the first: the tokens of a step share its time."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.elapsed_s


class Load(msgspec.Struct, frozen=True):
    """What every policy is given in one round."""

    batch: int
    temperature: float
    requests: int
    """Questions of one run."""


class Prediction(msgspec.Struct, frozen=True):
    """How well the controller knew what its steps would take."""

    median: float
    """Of predicted over measured, step by step."""
    within_15_percent: float
    """Share of the steps."""

    @staticmethod
    def of(ratios: Sequence[float]) -> Prediction | None:
        if not ratios:
            return None
        right = sum(abs(1.0 / ratio - 1.0) <= WITHIN for ratio in ratios)
        return Prediction(statistics.median(ratios), right / len(ratios))


class OfLimit(msgspec.Struct, frozen=True):
    """Share of its time that a step without prefill could not do without: 1 is perfect. What the
    device's caches hold from one pass to the next is read faster: small models get beyond 1."""

    step: float
    """The limits of drafting and verifying over all that a step takes."""
    verify: float
    draft: float | None = None
    """None: nothing was drafted, or by what is no network."""

    @staticmethod
    def of(least_ms: TimeSplit, decode_ms: TimeSplit) -> OfLimit | None:
        if not least_ms.verify:
            return None
        draft = least_ms.draft / decode_ms.draft if least_ms.draft else None
        return OfLimit(least_ms.total / decode_ms.total, least_ms.verify / decode_ms.verify, draft)


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One policy at one batch size, over all rounds. What is not known is left out."""

    policy: str
    batch: int
    temperature: float
    requests: int
    """Of one run."""
    rounds: int
    tokens_per_s: float
    speedup: Spread
    """Against `off` in the same round."""
    tokens_per_step: float = 0.0
    """Per sequence and target step."""
    nodes_per_step: float = 0.0
    time_shares: TimeSplit | None = None
    of_limit: OfLimit | None = None
    controller_ms: float | None = None
    """Per step."""
    prediction: Prediction | None = None
    first_token_ms: Percentiles | None = None
    between_tokens_ms: Percentiles | None = None
    of_oracle: Spread | None = None
    """Tokens/s over those of the best fixed tree in the same round."""
    tree: str | None = None
    """Of the oracle: which of the fixed trees was the best in most rounds."""


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured."""

    processor: str
    cores: int
    python: str
    torch: str
    transformers: str
    device: str

    @staticmethod
    def this(device: str) -> Machine:
        return Machine(
            processor=processor_name(),
            cores=usable_cores(),
            python=platform.python_version(),
            torch=version("torch"),
            transformers=version("transformers"),
            device=device,
        )


class Reliability(msgspec.Struct, frozen=True):
    """How often draft tokens were accepted whose parent was, by what was said of them."""

    said: tuple[float, ...]
    """Mean of each bin."""
    accepted: tuple[float, ...]
    """Share."""
    count: tuple[int, ...]


class Calibrations(msgspec.Struct, frozen=True):
    """Of `smart` over the whole run, before and after calibration."""

    confidence: Reliability
    calibrated: Reliability


class Costs(msgspec.Struct, frozen=True):
    """The tables that the controllers began with."""

    target: CostTable
    drafter: Curve | None


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A whole run of the benchmark."""

    command: str
    machine: Machine
    workload: str
    rows: tuple[Row, ...]
    calibration: Calibrations | None = None
    costs: Costs | None = None
    roof: Roof | None = None


def summarise(
    policy: str,
    load: Load,
    samples: Sequence[Sample],
    base: Sequence[Sample],
    oracle: Sequence[Sample] = (),
) -> Row:
    """One row from the rounds of a policy and those of `off`, and of the oracle, beside them."""
    steps = sum(s.steps for s in samples)
    sequence_steps = sum(s.sequence_steps for s in samples)
    time_ms = sum((s.time_ms for s in samples), TimeSplit())
    return Row(
        policy=policy,
        batch=load.batch,
        temperature=load.temperature,
        requests=load.requests,
        rounds=len(samples),
        tokens_per_s=statistics.median(s.tokens_per_s for s in samples),
        speedup=Spread.of(_ratios(samples, base)),
        tokens_per_step=sum(s.tokens for s in samples) / sequence_steps if sequence_steps else 0.0,
        nodes_per_step=sum(s.nodes for s in samples) / max(1, sequence_steps),
        time_shares=time_ms.shares() if time_ms.total else None,
        of_limit=OfLimit.of(
            sum((s.least_ms for s in samples), TimeSplit()),
            sum((s.decode_ms for s in samples), TimeSplit()),
        ),
        controller_ms=time_ms.controller / steps if steps and time_ms.controller else None,
        prediction=Prediction.of([r for s in samples for r in s.predicted_over_measured]),
        first_token_ms=Percentiles.of([ms for s in samples for ms in s.first_token_ms]),
        between_tokens_ms=Percentiles.of([ms for s in samples for ms in s.between_tokens_ms]),
        of_oracle=Spread.of(_ratios(samples, oracle)) if oracle else None,
    )


def _ratios(samples: Sequence[Sample], base: Sequence[Sample]) -> list[float]:
    # A tree that was given up has fewer rounds: the first ones.
    return [s.tokens_per_s / b.tokens_per_s for s, b in zip(samples, base, strict=False)]
