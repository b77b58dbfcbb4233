"""Pictures to the features that stand at their image tokens: no language model here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from smart_serve.checkpoint import Checkpoint
from smart_serve.errors import ConfigError
from vision.cache import CacheStats, FeatureCache
from vision.image import CheckedImage, decode_image
from vision.llava import LlavaTower
from vision.qwen2_vl import Qwen2VlTower
from vision.tokens import load_counter

DEFAULT_CACHE_BYTES = 256 * 2**20
"""About 27 pictures of LLaVA-1.5-7B (576 x 4096 float32), 4096 of the bundled model."""


class VisionTower(Protocol):
    """The vision part of one model family."""

    hidden_size: int

    def features(self, picture: Image.Image) -> torch.Tensor:
        """[num_tokens, hidden] of an upright RGB picture."""
        ...


_TOWERS: Mapping[str, Callable[[Checkpoint, torch.dtype, torch.device | str], VisionTower]] = {
    "llava": LlavaTower,
    "qwen2_vl": Qwen2VlTower,
}


class VisionEncoder:
    """A family's vision tower behind a cache. The language model's weights are never read."""

    def __init__(
        self,
        folder: Path | str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        """ConfigError when the folder is not a complete checkpoint of a model that sees."""
        checkpoint = Checkpoint(folder)
        model_type = str(checkpoint.config.get("model_type"))
        tower = _TOWERS.get(model_type)
        if tower is None:
            raise ConfigError(f"{folder}: model type '{model_type}' has no vision encoder here")
        self._tower = tower(checkpoint, dtype, device)
        self._counter = load_counter(folder)
        self._cache = FeatureCache(cache_bytes)
        self.hidden_size = self._tower.hidden_size

    def encode(self, images: Sequence[CheckedImage]) -> list[NDArray[np.float32]]:
        """Features of each picture, read-only float32 [num_tokens, hidden].

        Pictures run one by one: sums in another batch shape differ in their last bit, and tokens
        must not depend on which other pictures arrived at the same time.
        Errors: ClientError `invalid_image` when a picture does not decode.
        """
        return [self._features(image) for image in images]

    def num_tokens(self, image: CheckedImage) -> int:
        """Image tokens of `image`, from its header."""
        return self._counter.count(*image.upright_size_px).count

    def cache_stats(self) -> CacheStats:
        """Hits, misses and size of the feature cache."""
        return self._cache.stats()

    @torch.inference_mode()
    def _features(self, image: CheckedImage) -> NDArray[np.float32]:
        cached = self._cache.get(image.content_hash)
        if cached is not None:
            return cached
        features = self._tower.features(decode_image(image))
        result: NDArray[np.float32] = features.float().cpu().numpy()
        self._cache.put(image.content_hash, result)
        return result
