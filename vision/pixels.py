"""The model's own image processor: an RGB picture to the tensors that the vision tower reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor

from smart_serve.errors import ConfigError
from vision.tokens import read_processor_config


class PixelProcessor:
    """Resizes, crops and normalises as the folder's processor configuration says."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    @classmethod
    def from_folder(cls, folder: Path | str) -> PixelProcessor:
        """ConfigError when the folder has no processor configuration that can be used."""
        path = Path(folder)
        read_processor_config(path)
        try:
            # The Pillow backend: no torchvision, and the one the published checkpoints used.
            processor = AutoImageProcessor.from_pretrained(
                path, backend="pil", local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{path}: the image processor cannot be loaded") from error
        return cls(processor)

    def __call__(self, picture: Image.Image) -> dict[str, torch.Tensor]:
        """What the stock model calls its inputs of one RGB picture.

        LLaVA: float32 `pixel_values` [1, 3, side, side]. Qwen2-VL: `pixel_values` [patches,
        values] and `image_grid_thw` [1, 3], in patches.
        """
        return dict(self._processor(images=picture, return_tensors="pt"))
