"""What "auto" means for the weights."""

from __future__ import annotations

import pytest

from smart_serve.config import EngineConfig


@pytest.mark.parametrize(
    ("device", "dtype", "meant"),
    [
        ("cpu", "auto", "float32"),
        ("cuda", "auto", "bfloat16"),
        ("cuda:1", "auto", "bfloat16"),
        ("cuda", "float32", "float32"),
        ("cpu", "float16", "float16"),
    ],
)
def test_auto_is_what_the_device_is_built_for(device: str, dtype: str, meant: str) -> None:
    assert EngineConfig(device=device, dtype=dtype).dtype_name == meant
