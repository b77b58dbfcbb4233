"""Qwen2-VL's vision tower with its merger, unmodified."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from smart_serve.checkpoint import Checkpoint, build_module
from vision.pixels import PixelProcessor

_LAYOUTS = ({"visual.": ""}, {"model.visual.": ""})
"""Hub folders and what transformers 5 saves; its names in memory."""


class Qwen2VlTower:
    """One picture of any size to one feature for every four patches."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """ConfigError when the folder is not a complete Qwen2-VL checkpoint."""
        config = Qwen2VLConfig.from_dict(checkpoint.config).vision_config
        self._dtype, self._device = dtype, torch.device(device)
        build = Qwen2VisionTransformerPretrainedModel._from_config
        self._tower = build_module(lambda: build(config))
        checkpoint.load_into(self._tower, _LAYOUTS, dtype, device)
        self._pixels = PixelProcessor.from_folder(checkpoint.folder)
        self.hidden_size: int = config.hidden_size

    def features(self, picture: Image.Image) -> torch.Tensor:
        """[num_tokens, hidden], row by row of the picture's grid."""
        inputs = self._pixels(picture)
        pixels = inputs["pixel_values"].to(self._device, self._dtype)
        merged: torch.Tensor = self._tower(
            pixels, grid_thw=inputs["image_grid_thw"].to(self._device)
        ).pooler_output
        return merged
