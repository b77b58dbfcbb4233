"""How many image tokens a picture becomes, from its size alone: no decoding, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from smart_serve.errors import ConfigError


class ImageTokenCounter(msgspec.Struct, frozen=True):
    """LLaVA-1.5's rule: every picture is resized to one square, so the count is constant."""

    tokens_per_image: int

    @classmethod
    def from_folder(cls, folder: Path | str) -> ImageTokenCounter:
        """From a LLaVA folder's config.json. ConfigError when it describes no such model."""
        return cls.from_config(_read_config(Path(folder)))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ImageTokenCounter:
        """(image_size / patch_size)^2, plus one when the CLS token is kept ("full")."""
        if config.get("model_type") != "llava":
            raise ConfigError(
                f"pictures of model type '{config.get('model_type')}' are not supported"
            )
        vision = config.get("vision_config")
        if not isinstance(vision, dict):
            raise ConfigError("config.json has no vision_config")
        side, patch = vision.get("image_size"), vision.get("patch_size")
        if not isinstance(side, int) or not isinstance(patch, int) or patch < 1 or side < patch:
            raise ConfigError("vision_config needs image_size and patch_size")
        cls_token = config.get("vision_feature_select_strategy", "default") == "full"
        return cls(tokens_per_image=(side // patch) ** 2 + int(cls_token))

    def num_tokens(self, width_px: int, height_px: int) -> int:
        """Image tokens of a picture of this size."""
        if width_px < 1 or height_px < 1:
            raise ValueError("a picture has at least one pixel")
        return self.tokens_per_image


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path} as JSON") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return config
