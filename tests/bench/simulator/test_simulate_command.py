"""`smart-serve simulate` as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from smart_serve.cli import main

SHORT = ["--steps", "3", "--warm-up", "3", "--batch", "1,4"]


def test_every_figure_is_marked_as_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    assert main(["simulate", *SHORT, "--policies", "off,smart", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(line.lower().startswith("simulated") for line in lines)
    rows = json.loads(file.read_text())
    assert [row["simulated"] for row in rows] == [True] * 4
    assert rows[0]["speedup"] == pytest.approx(1.0, abs=0.05)


def test_a_changing_load_is_reported_by_phase(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--trace", "1x12,4x12", "--policies", "smart"]) == 0
    assert capsys.readouterr().out.count("regret") == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--device", "abacus"],
        ["--model", "none"],
        ["--policies", "none"],
        ["--policies", "off,off"],
        ["--batch", "0"],
        ["--batch", "1,,4"],
        ["--batch", "two"],
        ["--trace", "1"],
        ["--trace", "1x60,64"],
        ["--trace", "1x4"],
        ["--wire-ms", "-1"],
        ["--wire-ms", "nan"],
        ["--worth", "1.5"],
        ["--steps", "0"],
    ],
)
def test_what_cannot_be_simulated_is_told_in_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *words])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert words[0] in told


def test_neither_torch_nor_a_model_is_loaded() -> None:
    code = (
        "import sys, smart_serve.bench.simulate\n"
        "sys.exit(bool({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
