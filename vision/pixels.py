"""The model's own image processor: an RGB picture to the tensor that the vision tower reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor

from smart_serve.errors import ConfigError
from vision.tokens import ImageTokenCounter

_CONFIG_FILES = ("preprocessor_config.json", "processor_config.json")


class PixelProcessor:
    """Resizes, crops and normalises as the folder's processor configuration says."""

    def __init__(self, processor: Any, counter: ImageTokenCounter) -> None:
        self._processor = processor
        self._counter = counter

    @classmethod
    def from_folder(cls, folder: Path | str) -> PixelProcessor:
        """ConfigError when the folder has no processor configuration that can be used."""
        path = Path(folder)
        if not any((path / name).is_file() for name in _CONFIG_FILES):
            raise ConfigError(f"{path} holds none of {', '.join(_CONFIG_FILES)}")
        try:
            # The Pillow backend: no torchvision, and the one the published checkpoints used.
            processor = AutoImageProcessor.from_pretrained(
                path, backend="pil", local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{path}: the image processor cannot be loaded") from error
        return cls(processor, ImageTokenCounter.from_folder(path))

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """`picture`: RGB. Returns float32 pixel values [3, side, side]."""
        pixels: torch.Tensor = self._processor(images=picture, return_tensors="pt")["pixel_values"]
        return pixels[0]

    def num_tokens(self, width_px: int, height_px: int) -> int:
        """Image tokens of a picture of this size, from its header alone."""
        return self._counter.num_tokens(width_px, height_px)
