"""What a start measures, the next one finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from smart_serve.config import EngineConfig
from smart_serve.engine import build
from smart_serve.engine.build import build_engine
from smart_serve.speculation.cost_store import CostStore

CONFIG = EngineConfig(kv_tokens=1024, max_running=4)


def test_a_second_start_takes_the_stored_costs(
    small_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CostStore(tmp_path)
    measured = build_engine(small_llama, CONFIG, None, store=store)
    assert measured.controller.prices.plain_step_ms(1, 64.0) > 0.0
    (file,) = tmp_path.iterdir()
    content = msgspec.json.decode(file.read_bytes())
    for curve in (curve for row in content["costs"]["curves"] for curve in row):
        curve["y"] = [1234.5] * len(curve["y"])
    file.write_bytes(msgspec.json.encode(content))
    # Here no step takes that long, so the table is found out.
    remeasured = build_engine(small_llama, CONFIG, None, store=CostStore(_copy(tmp_path)))
    assert remeasured.controller.prices.plain_step_ms(1, 64.0) < 600.0
    monkeypatch.setattr(build, "still_holds", lambda *_: True)
    again = build_engine(small_llama, CONFIG, None, store=store)
    assert again.controller.prices.plain_step_ms(1, 64.0) == pytest.approx(1234.5)


def _copy(folder: Path) -> Path:
    copy = folder.parent / "copied-costs"
    shutil.copytree(folder, copy)
    return copy


def test_another_model_is_measured_by_itself(
    small_llama: Path, small_llava: Path, tmp_path: Path
) -> None:
    for folder in (small_llama, small_llava):
        build_engine(folder, CONFIG, None, store=CostStore(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
