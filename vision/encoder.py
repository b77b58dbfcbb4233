"""Pictures to the features that stand at their image tokens: vision tower and projector only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from smart_serve.checkpoint import (
    PROJECTOR_LAYOUTS,
    VISION_TOWER_LAYOUTS,
    Checkpoint,
    build_module,
)
from smart_serve.errors import ConfigError
from vision.cache import CacheStats, FeatureCache
from vision.image import CheckedImage, decode_image
from vision.pixels import PixelProcessor

DEFAULT_CACHE_BYTES = 256 * 2**20
"""About 27 pictures of LLaVA-1.5-7B (576 x 4096 float32), 4096 of the bundled model."""


class VisionEncoder:
    """The unmodified vision tower and projector of a LLaVA folder.

    The language model's weights are never read.
    """

    def __init__(
        self,
        folder: Path | str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        """ConfigError when the folder is not a complete LLaVA checkpoint."""
        checkpoint = Checkpoint(folder)
        if checkpoint.config.get("model_type") != "llava":
            found = checkpoint.config.get("model_type")
            raise ConfigError(f"{folder}: model type '{found}' has no vision encoder here")
        config = LlavaConfig.from_dict(checkpoint.config)
        self._dtype, self._device = dtype, torch.device(device)
        self._layers = config.vision_feature_layer
        self._drop_cls = config.vision_feature_select_strategy == "default"
        self._tower = build_module(lambda: AutoModel.from_config(config.vision_config))
        self._projector = build_module(lambda: LlavaMultiModalProjector(config))
        checkpoint.load_into(self._tower, VISION_TOWER_LAYOUTS, dtype, device)
        checkpoint.load_into(self._projector, PROJECTOR_LAYOUTS, dtype, device)
        self._pixels = PixelProcessor.from_folder(folder)
        self._cache = FeatureCache(cache_bytes)
        self.hidden_size: int = config.text_config.hidden_size

    def encode(self, images: Sequence[CheckedImage]) -> list[NDArray[np.float32]]:
        """Features of each picture, read-only float32 [num_tokens, hidden].

        Pictures run one by one: sums in another batch shape differ in their last bit, and tokens
        must not depend on which other pictures arrived at the same time.
        Errors: ClientError `invalid_image` when a picture does not decode.
        """
        return [self._features(image) for image in images]

    def num_tokens(self, image: CheckedImage) -> int:
        """Image tokens of `image`, from its header."""
        return self._pixels.num_tokens(image.width_px, image.height_px)

    def cache_stats(self) -> CacheStats:
        """Hits, misses and size of the feature cache."""
        return self._cache.stats()

    def _features(self, image: CheckedImage) -> NDArray[np.float32]:
        cached = self._cache.get(image.content_hash)
        if cached is not None:
            return cached
        pixels = self._pixels(decode_image(image)).unsqueeze(0)
        features = self._forward(pixels.to(self._device, self._dtype))
        result: NDArray[np.float32] = features.float().cpu().numpy()
        self._cache.put(image.content_hash, result)
        return result

    @torch.inference_mode()
    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[1, 3, side, side] -> [num_tokens, hidden], as LlavaModel.get_image_features does."""
        states = self._tower(pixels, output_hidden_states=True).hidden_states
        layers = [self._layers] if isinstance(self._layers, int) else self._layers
        first = 1 if self._drop_cls else 0
        selected = torch.cat([states[layer][:, first:] for layer in layers], dim=-1)
        projected: torch.Tensor = self._projector(selected)[0]
        return projected
