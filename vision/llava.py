"""LLaVA's vision tower and projector, unmodified."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import AutoModel, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from smart_serve.checkpoint import (
    PROJECTOR_LAYOUTS,
    VISION_TOWER_LAYOUTS,
    Checkpoint,
    build_module,
)
from vision.pixels import PixelProcessor


class LlavaTower:
    """One square picture to as many features as it has patches."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """ConfigError when the folder is not a complete LLaVA checkpoint."""
        config = LlavaConfig.from_dict(checkpoint.config)
        self._dtype, self._device = dtype, torch.device(device)
        self._layers = config.vision_feature_layer
        self._drop_cls = config.vision_feature_select_strategy == "default"
        self._tower = build_module(lambda: AutoModel.from_config(config.vision_config))
        self._projector = build_module(lambda: LlavaMultiModalProjector(config))
        checkpoint.load_into(self._tower, VISION_TOWER_LAYOUTS, dtype, device)
        checkpoint.load_into(self._projector, PROJECTOR_LAYOUTS, dtype, device)
        self._pixels = PixelProcessor.from_folder(checkpoint.folder)
        self.hidden_size: int = config.text_config.hidden_size

    def features(self, picture: Image.Image) -> torch.Tensor:
        """[num_tokens, hidden], as LlavaModel.get_image_features does."""
        pixels = self._pixels(picture)["pixel_values"].to(self._device, self._dtype)
        states = self._tower(pixels, output_hidden_states=True).hidden_states
        layers = [self._layers] if isinstance(self._layers, int) else self._layers
        first = 1 if self._drop_cls else 0
        selected = torch.cat([states[layer][:, first:] for layer in layers], dim=-1)
        projected: torch.Tensor = self._projector(selected)[0]
        return projected
