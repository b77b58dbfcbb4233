"""Token counts and grids, from sizes alone, are those of the models' own image processors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from smart_serve.errors import ConfigError
from tests.vision.pictures import noise
from vision.tokens import FixedCounter, ResizingCounter, load_counter, read_processor_config

SIDES = st.integers(1, 3_000)
PUBLISHED = {
    "min_pixels": 3_136,
    "max_pixels": 12_845_056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_processor_type": "Qwen2VLImageProcessor",
    "size": {"max_pixels": 12_845_056, "min_pixels": 3_136},
}
"""The form of Qwen2-VL-7B-Instruct's preprocessor_config.json."""


@settings(max_examples=500, deadline=None)
@given(width=SIDES, height=SIDES, low=st.integers(784, 10**5), more=st.integers(0, 10**6))
def test_grids_equal_transformers(width: int, height: int, low: int, more: int) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    counter = ResizingCounter.from_config({"min_pixels": low, "max_pixels": low + more})
    rows_px, columns_px = smart_resize(height, width, 28, low, low + more)
    found = counter.count(width, height)
    assert found.grid == (rows_px // 28, columns_px // 28)
    assert found.count == rows_px * columns_px // 28**2


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("config", [PUBLISHED, {"image_processor_type": "Qwen2VLImageProcessor"}])
def test_every_form_of_configuration_is_read_as_transformers_reads_it(
    tmp_path: Path, config: dict[str, object], nested: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    if nested:
        wrapped = {"image_processor": config, "processor_class": "Qwen2VLProcessor"}
        (tmp_path / "processor_config.json").write_text(json.dumps(wrapped))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 10**6}))
    else:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert isinstance(processor, Qwen2VLImageProcessorPil)
    counter = load_counter(tmp_path)
    for width, height in [(30, 20), (640, 480), (1_000, 3_001)]:
        patches = processor.get_number_of_image_patches(height, width)
        assert counter.count(width, height).count == patches // 4


def test_the_grid_is_the_processors(small_qwen2_vl: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(small_qwen2_vl, backend="pil")
    counter = load_counter(small_qwen2_vl)
    seen = set()
    for width, height in [(1, 1), (3, 1), (8, 8), (30, 20), (20, 30), (100, 9), (64, 64)]:
        thw = processor(images=noise(1, width, height), return_tensors="pt")["image_grid_thw"]
        tokens = counter.count(width, height)
        assert thw.tolist() == [[1, 2 * tokens.grid[0], 2 * tokens.grid[1]]]
        seen.add(tokens.grid)
    assert len(seen) > 4


def test_llava_counts_do_not_depend_on_the_size(small_llava: Path) -> None:
    counter = load_counter(small_llava)
    assert counter == FixedCounter(tokens_per_image=4)
    assert counter.count(1, 1) == counter.count(500, 2)


@pytest.mark.parametrize(
    ("config", "processor", "word"),
    [
        ({"model_type": "bert"}, None, "not supported"),
        ({"model_type": "llava"}, None, "vision_config"),
        ({"model_type": "qwen2_vl"}, None, "preprocessor_config"),
        ({"model_type": "qwen2_vl"}, {"max_pixels": 1}, "max_pixels"),
    ],
)
def test_a_folder_that_does_not_tell_is_a_config_error(
    tmp_path: Path, config: dict[str, object], processor: dict[str, object] | None, word: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ConfigError, match=word):
        load_counter(tmp_path)
    assert processor is None or read_processor_config(tmp_path) == processor
