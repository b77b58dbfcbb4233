"""Attention is measured over real trees, and never told to be faster than its limit allows."""

from __future__ import annotations

import pytest
import torch

from smart_serve.bench import attention
from smart_serve.bench.roof import Roof
from smart_serve.bench.simulator.shapes import SHAPES


def test_trees_are_trees() -> None:
    forest = attention.trees(3, 9)
    assert forest.problem(vocab_size=2, max_nodes=27) is None
    assert forest.parents[:9].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert forest.depths[9:18].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2]
    assert attention.trees(2, 0).problem(2, 0) is None


def test_the_limit_is_that_of_the_scarcer_resource() -> None:
    shape, like = SHAPES["llama-3.1-8b"], torch.zeros(0)
    bench = attention.AttentionBench(shape, batch=2, rows=4, context=60, like=like)
    # Two sequences, 64 slots, keys and values of 8 heads of 128, 4 bytes each.
    kv_bytes = 2 * 64 * 2 * 8 * 128 * 4
    assert bench.least_ms(Roof(1.0, 1e9)) == pytest.approx(kv_bytes * 1e-6)
    # Two products for every query head, row and slot, of 2 · 128 operations each.
    flops = 2 * 2 * 2 * 128 * 32 * 4 * 64
    assert bench.least_ms(Roof(1e9, 1e-6)) == pytest.approx(flops * 1e-3)


def test_a_line_for_each_case(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--shape", "qwen2-vl-7b", "--batch", "1,2", "--context", "40", "--rows", "1,5"]
    assert attention.main(words) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split(":")[0].split()[1::2] for line in lines] == [
        ["1,", "40,", "rows"],
        ["1,", "40,", "rows"],
        ["2,", "40,", "rows"],
        ["2,", "40,", "rows"],
    ]
    assert all(float(line.split()[-6]) > 0 for line in lines)
