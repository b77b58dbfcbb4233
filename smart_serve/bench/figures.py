"""What a benchmark measured, as it is written to JSON."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version

import msgspec
import numpy as np
import torch


class Spread(msgspec.Struct, frozen=True):
    """Median and deciles of a ratio over the rounds."""

    median: float
    p10: float
    p90: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        low, high = np.percentile(values, (10, 90)).tolist()
        return Spread(statistics.median(values), low, high)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's run over the workload in one round."""

    tokens: int
    elapsed_s: float
    steps: int = 0
    nodes: int = 0
    sequence_steps: int = 0
    """Steps counted once per sequence that took part."""
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    step_ms: float = 0.0
    predicted_ms: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.elapsed_s


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One policy at one batch size, over all rounds."""

    policy: str
    batch: int
    temperature: float
    tokens_per_s: float
    speedup: Spread
    """Against `off` in the same round."""
    tokens_per_step: float
    """Per sequence and target step; 0 where steps are not known (`transformers`)."""
    nodes_per_step: float
    draft_share: float
    """Of the step's wall clock."""
    verify_share: float
    predicted_over_measured: float
    """Step time by the cost tables over the clock's."""
    rounds: int


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
        name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
        return Machine(
            processor=name,
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
            python=platform.python_version(),
            torch=str(torch.__version__),
            transformers=version("transformers"),
            device=device,
        )


class Report(msgspec.Struct, frozen=True):
    """A whole run of the benchmark."""

    command: str
    machine: Machine
    rows: tuple[Row, ...]


def summarise(
    policy: str, batch: int, temperature: float, samples: Sequence[Sample], base: Sequence[Sample]
) -> Row:
    """One row from the rounds of a policy and those of `off` beside them."""
    ratios = [s.tokens_per_s / b.tokens_per_s for s, b in zip(samples, base, strict=True)]
    step_ms = sum(s.step_ms for s in samples)
    sequence_steps = sum(s.sequence_steps for s in samples)
    return Row(
        policy=policy,
        batch=batch,
        temperature=temperature,
        tokens_per_s=statistics.median(s.tokens_per_s for s in samples),
        speedup=Spread.of(ratios),
        tokens_per_step=sum(s.tokens for s in samples) / sequence_steps if sequence_steps else 0.0,
        nodes_per_step=sum(s.nodes for s in samples) / max(1, sequence_steps),
        draft_share=sum(s.draft_ms for s in samples) / max(step_ms, 1e-9),
        verify_share=sum(s.verify_ms for s in samples) / max(step_ms, 1e-9),
        predicted_over_measured=sum(s.predicted_ms for s in samples) / max(step_ms, 1e-9),
        rounds=len(samples),
    )


def command_line() -> str:
    """The command as it was typed, without the interpreter's path."""
    return " ".join(["smart-serve", *sys.argv[1:]])


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
