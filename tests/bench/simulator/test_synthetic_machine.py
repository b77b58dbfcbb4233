"""Synthetic step times have the shape that makes speculation a question."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from smart_serve.bench.simulator.device import DEVICES
from smart_serve.bench.simulator.machine import Machine
from smart_serve.bench.simulator.shapes import SHAPES
from smart_serve.speculation.cost_grid import CONTEXTS, ROWS_PER_SEQUENCE

MACHINES = [
    Machine(device, shape) for device, shape in itertools.product(DEVICES.values(), SHAPES.values())
]


def test_parameters_are_those_of_the_named_models() -> None:
    billions = {name: shape.target_params / 1e9 for name, shape in SHAPES.items()}
    # With the embedding: 8.03, 6.74 and 13.02 (model cards).
    assert billions["llama-3.1-8b"] == pytest.approx(7.50, abs=0.02)
    assert billions["llava-1.5-7b"] == pytest.approx(6.61, abs=0.02)
    assert billions["llava-1.5-13b"] == pytest.approx(12.85, abs=0.02)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.device.name}-{m.shape.name}")
def test_a_few_more_tokens_are_nearly_free_and_very_many_cost_in_proportion(
    machine: Machine,
) -> None:
    one, few = machine.verify_ms(1, 1, 64), machine.verify_ms(16, 1, 64)
    many, twice = machine.verify_ms(4096, 1, 64), machine.verify_ms(8192, 1, 64)
    assert few < 1.05 * one
    assert many > 5.0 * one
    assert twice == pytest.approx(2.0 * many, rel=0.1)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.device.name}-{m.shape.name}")
def test_time_never_falls_with_tokens_and_is_a_staircase(machine: Machine) -> None:
    times = np.asarray([machine.verify_ms(n, 1, 64) for n in range(1, 600)])
    assert np.all(np.diff(times) >= 0)
    products = [machine.device.product_ms(machine.shape.target_params, n) for n in (65, 100, 128)]
    assert products[0] == products[1] == products[2]


def test_the_table_is_exact_where_it_was_measured() -> None:
    machine = MACHINES[0]
    table = machine.cost_table()
    for rows, context in itertools.product(ROWS_PER_SEQUENCE[:5], CONTEXTS):
        truth = machine.verify_ms(16 * rows, 16, context)
        assert table.step_ms(16 * rows, 16, context) == pytest.approx(truth)
