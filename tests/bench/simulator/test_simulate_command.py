"""`smart-serve simulate` as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from smart_serve.bench.simulator.device import DEVICES
from smart_serve.bench.simulator.machine import Machine
from smart_serve.bench.simulator.shapes import SHAPES
from smart_serve.bench.simulator.simulation import Setting
from smart_serve.bench.simulator.summary import Best, best_tree
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


def test_smart_as_a_share_of_the_best_fixed_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    words = "simulate --batch 1,64 --policies off,eagle2:1x1,smart --oracle --warm-up 60 --steps 20"
    assert main([*words.split(), "--json", str(file)]) == 0
    assert capsys.readouterr().out.count("of the oracle") == 2
    found = json.loads(file.read_text())[-1]
    # One node a step is no match at batch 1, and no fixed tree is far above both batches' smart.
    assert found["over_rivals"].keys() == {"eagle2:1x1"}
    assert found["over_rivals"]["eagle2:1x1"] > 1.2
    assert 0.85 < found["least_share"] <= found["share_of_oracle"] < 1.3


def test_the_best_fixed_tree_shrinks_with_the_batch_and_with_the_wire() -> None:
    setting = Setting(Machine(DEVICES["l4"], SHAPES["llava-1.5-7b"]))
    alone, crowded = best_tree(setting, 1), best_tree(setting, 256)
    assert alone.speedup > crowded.speedup >= 1.0
    far = msgspec.structs.replace(setting, wire_ms=1e4)
    assert best_tree(far, 256) == Best("off", 1.0)


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
