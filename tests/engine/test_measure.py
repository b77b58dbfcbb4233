"""What a start measures, the next one finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from smart_serve.config import EngineConfig
from smart_serve.engine import build, measure
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


def test_a_model_of_another_shape_is_measured_by_itself(
    small_llama: Path, small_llava: Path, small_qwen2_vl: Path, tmp_path: Path
) -> None:
    files = []
    for folder in (small_llama, small_llava, small_qwen2_vl):
        build_engine(folder, CONFIG, None, store=CostStore(tmp_path))
        files.append(len(list(tmp_path.iterdir())))
    # The language models of the first two are alike; the third one's positions have three axes.
    assert files == [1, 1, 2]


def test_a_shipped_table_serves_another_cache_but_not_larger_batches(
    small_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shipped = tmp_path / "own", tmp_path / "shipped"
    few = msgspec.structs.replace(CONFIG, max_running=2)
    build_engine(small_llama, few, None, store=CostStore(shipped))
    monkeypatch.setattr(measure, "are_alike", lambda *_: True)
    store = CostStore(own, shipped=shipped)
    larger_cache = msgspec.structs.replace(few, kv_tokens=2 * few.kv_tokens)
    build_engine(small_llama, larger_cache, None, store=store)
    assert not own.exists()
    build_engine(small_llama, msgspec.structs.replace(few, max_running=8), None, store=store)
    assert len(list(own.iterdir())) == 1
