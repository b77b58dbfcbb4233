"""Qwen2-VL's features are transformers' own, for pictures of every size and orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

from smart_serve.errors import ConfigError
from tests.vision.pictures import checked, noise
from tests.vision.test_orientation import exif
from vision.encoder import VisionEncoder
from vision.image import CheckedImage, decode_image
from vision.pixels import PixelProcessor

SIZES = [(30, 20), (20, 30), (64, 9), (1, 3), (16, 16), (40, 40)]
IMAGES = [
    *(checked(noise(i, *size)) for i, size in enumerate(SIZES)),
    checked(noise(9, 30, 20), "JPEG", exif=exif(6)),
]


def reference(folder: Path, image: CheckedImage) -> np.ndarray:
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = PixelProcessor.from_folder(folder)(decode_image(image))
    with torch.no_grad():
        return model.get_image_features(**inputs).pooler_output[0].numpy()


def test_features_equal_those_of_transformers(small_qwen2_vl: Path) -> None:
    encoder = VisionEncoder(small_qwen2_vl)
    found = encoder.encode(IMAGES)
    assert len({len(features) for features in found}) > 2
    for image, features in zip(IMAGES, found, strict=True):
        assert features.shape == (encoder.num_tokens(image), encoder.hidden_size)
        assert np.abs(features - reference(small_qwen2_vl, image)).max() < 1e-5


def test_features_do_not_depend_on_the_batch(small_qwen2_vl: Path) -> None:
    together = VisionEncoder(small_qwen2_vl).encode(IMAGES)
    alone = VisionEncoder(small_qwen2_vl).encode(IMAGES[1:2])[0]
    assert alone.tobytes() == together[1].tobytes()


def copy_with(folder: Path, target: Path, tensors: dict[str, torch.Tensor]) -> Path:
    for name in ("config.json", "preprocessor_config.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    save_file(tensors, target / "model.safetensors")
    return target


def test_names_in_memory_load_too(small_qwen2_vl: Path, tmp_path: Path) -> None:
    tensors = load_file(small_qwen2_vl / "model.safetensors")
    renamed = {f"model.{k}": v for k, v in tensors.items() if k.startswith("visual.")}
    folder = copy_with(small_qwen2_vl, tmp_path, renamed)
    expected = VisionEncoder(small_qwen2_vl).encode(IMAGES[:1])[0]
    assert np.array_equal(VisionEncoder(folder).encode(IMAGES[:1])[0], expected)


def test_a_missing_tensor_is_named(small_qwen2_vl: Path, tmp_path: Path) -> None:
    tensors = load_file(small_qwen2_vl / "model.safetensors")
    del tensors["visual.merger.ln_q.bias"]
    with pytest.raises(ConfigError, match=r"merger\.ln_q\.bias"):
        VisionEncoder(copy_with(small_qwen2_vl, tmp_path, tensors))
