"""Overlapping on synthetic devices: faster where the drafter is far and the batch is large, and
never slower."""

from __future__ import annotations

import msgspec
import pytest

from smart_serve.bench.simulate import config_of
from smart_serve.bench.simulator.device import DEVICES
from smart_serve.bench.simulator.machine import Machine
from smart_serve.bench.simulator.run import Figures, Length, simulate
from smart_serve.bench.simulator.shapes import SHAPES
from smart_serve.bench.simulator.simulation import Setting
from smart_serve.speculation.overlap import Overlap

MODEL = "llava-1.5-7b"
SHORT = Length(60, 40)
SLACK = 0.98
"""What looks at the other way may cost, and the luck of the draw."""


def figures(policy: str, wire_ms: float, batch: int, *, overlap: bool) -> Figures:
    machine = Machine(DEVICES["rtx-pro-6000"], SHAPES[MODEL])
    setting = Setting(
        machine, context=machine.shape.context, wire_ms=wire_ms, config=config_of(MODEL)
    )
    return simulate(policy, msgspec.structs.replace(setting, overlap=overlap), batch, SHORT)


@pytest.mark.parametrize("policy", ["eagle2:4x2", "smart"])
def test_a_far_drafter_costs_less_when_its_hop_is_hidden(policy: str) -> None:
    one_after_the_other = figures(policy, 20.0, 64, overlap=False)
    overlapped = figures(policy, 20.0, 64, overlap=True)
    assert one_after_the_other.overlapped_share == 0.0
    assert overlapped.overlapped_share > 0.9
    assert overlapped.tokens_per_s > 1.15 * one_after_the_other.tokens_per_s
    assert overlapped.predicted_over_true == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("policy", ["eagle2:4x2", "smart"])
@pytest.mark.parametrize("wire_ms", [0.1, 5.0, 20.0])
@pytest.mark.parametrize("batch", [2, 16, 64])
def test_it_is_never_slower(policy: str, wire_ms: float, batch: int) -> None:
    overlapped = figures(policy, wire_ms, batch, overlap=True)
    assert (
        overlapped.tokens_per_s
        >= SLACK * figures(policy, wire_ms, batch, overlap=False).tokens_per_s
    )


def test_where_it_does_not_pay_it_would_be_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: overlapped whatever it costs."""
    one_after_the_other = figures("eagle2:4x2", 20.0, 4, overlap=True)
    assert one_after_the_other.overlapped_share == 0.0
    monkeypatch.setattr(Overlap, "gain", lambda self, whole, half, batch: 2.0)
    overlapped = figures("eagle2:4x2", 20.0, 4, overlap=True)
    assert overlapped.overlapped_share > 0.9
    assert overlapped.tokens_per_s < 0.9 * one_after_the_other.tokens_per_s
