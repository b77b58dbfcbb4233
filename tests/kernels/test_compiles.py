"""The Triton kernels compile for GPUs that this machine has not got."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


EVERYTHING = pytest.param("--all", ("sm_80", "sm_89", "sm_90"), marks=pytest.mark.slow)


@pytest.mark.parametrize(("which", "architectures"), [("--few", ("sm_89",)), EVERYTHING])
def test_every_kernel_compiles(which: str, architectures: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(HERE.parents[1]),
    }
    run = subprocess.run(
        [sys.executable, str(HERE / "compile_kernels.py"), which],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert all(architecture in run.stdout for architecture in architectures)
