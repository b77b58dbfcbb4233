"""What a pass cannot take less than."""

from __future__ import annotations

import pytest

from smart_serve.bench.figures import OfLimit, TimeSplit
from smart_serve.bench.roof import Limit, Roof

ROOF = Roof(copy_gb_s=100.0, matrix_tflops=2.0)


def test_a_pass_takes_what_its_scarcer_resource_takes() -> None:
    limit = Limit(ROOF, 8 * 10**8, 2 * 10**8, element_bytes=2, kv_elements=1000)
    assert limit.least_ms(1) == pytest.approx(20.0)  # 2 GB at 100 GB/s
    assert limit.least_ms(1, cached=10**6) == pytest.approx(40.0)  # as much again of the cache
    assert limit.least_ms(40, 40) == pytest.approx(40.0)  # 80 GFLOP at 2 TFLOPS
    assert limit.least_ms(40, 0) == pytest.approx(32.0)  # prompt rows do not pass the head
    assert limit.least_ms(20, 20) == limit.least_ms(1)  # where both take as long


def test_a_share_is_told_of_what_was_run() -> None:
    spent = TimeSplit(draft=2.0, verify=10.0, other=8.0)
    told = OfLimit.of(TimeSplit(draft=1.0, verify=4.0), spent)
    assert told == OfLimit(step=0.25, verify=0.4, draft=0.5)
    assert OfLimit.of(TimeSplit(verify=4.0), spent) == OfLimit(step=0.2, verify=0.4)
    assert OfLimit.of(TimeSplit(), TimeSplit()) is None  # nothing but prefill
