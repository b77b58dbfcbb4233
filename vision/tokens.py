"""How many image tokens a picture becomes, from its size alone: no decoding, no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

import msgspec

from smart_serve.errors import ConfigError


class ImageTokens(msgspec.Struct, frozen=True):
    """A picture's place in the prompt."""

    count: int
    grid: tuple[int, int] | None = None
    """Rows and columns; None where the model's positions do not tell them apart."""


class ImageTokenCounter(Protocol):
    """One model's rule."""

    def count(self, width_px: int, height_px: int) -> ImageTokens:
        """Tokens of an upright picture of this size."""
        ...


def load_counter(folder: Path | str) -> ImageTokenCounter:
    """The rule of the model in `folder`. ConfigError when its files do not tell it."""
    path = Path(folder)
    config = _read_json(path / "config.json")
    model_type = config.get("model_type")
    if model_type == "llava":
        return FixedCounter.from_config(config)
    if model_type == "qwen2_vl":
        return ResizingCounter.from_config(read_processor_config(path))
    raise ConfigError(f"pictures of model type '{model_type}' are not supported")


def read_processor_config(folder: Path) -> dict[str, Any]:
    """The image processor's configuration, which newer folders nest inside the processor's."""
    combined, own = folder / "processor_config.json", folder / "preprocessor_config.json"
    nested = _read_json(combined).get("image_processor") if combined.is_file() else None
    if isinstance(nested, dict):
        return nested
    if not own.is_file():
        raise ConfigError(f"{folder} holds no preprocessor_config.json")
    return _read_json(own)


class FixedCounter(msgspec.Struct, frozen=True):
    """LLaVA-1.5: every picture is resized to one square, so the count is constant."""

    tokens_per_image: int

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FixedCounter:
        """(image_size / patch_size)^2, plus one when the CLS token is kept ("full")."""
        vision = config.get("vision_config")
        if not isinstance(vision, dict):
            raise ConfigError("config.json has no vision_config")
        side, patch = vision.get("image_size"), vision.get("patch_size")
        if not isinstance(side, int) or not isinstance(patch, int) or patch < 1 or side < patch:
            raise ConfigError("vision_config needs image_size and patch_size")
        cls_token = config.get("vision_feature_select_strategy", "default") == "full"
        return cls(tokens_per_image=(side // patch) ** 2 + int(cls_token))

    def count(self, width_px: int, height_px: int) -> ImageTokens:
        return ImageTokens(self.tokens_per_image)


class ResizingCounter(msgspec.Struct, frozen=True):
    """Qwen2-VL: sides become whole token sides, the area stays between two bounds."""

    token_side_px: int
    """A token is `merge_size` x `merge_size` patches."""
    min_pixels: int
    max_pixels: int

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ResizingCounter:
        """From the image processor's configuration; defaults are transformers' own."""
        size = config.get("size") or {}
        side = config.get("patch_size", 14) * config.get("merge_size", 2)
        low = config.get("min_pixels") or size.get("shortest_edge", 56 * 56)
        high = config.get("max_pixels") or size.get("longest_edge", 28 * 28 * 1280)
        if not side * side <= low <= high:
            raise ConfigError("the image processor needs token area <= min_pixels <= max_pixels")
        return cls(token_side_px=side, min_pixels=low, max_pixels=high)

    def count(self, width_px: int, height_px: int) -> ImageTokens:
        side, area = self.token_side_px, width_px * height_px
        rows, columns = round(height_px / side), round(width_px / side)
        if rows * columns * side * side > self.max_pixels:
            shrink = math.sqrt(area / self.max_pixels)
            rows = max(1, math.floor(height_px / shrink / side))
            columns = max(1, math.floor(width_px / shrink / side))
        elif rows * columns * side * side < self.min_pixels:
            stretch = math.sqrt(self.min_pixels / area)
            rows = math.ceil(height_px * stretch / side)
            columns = math.ceil(width_px * stretch / side)
        return ImageTokens(rows * columns, (rows, columns))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path} as JSON") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return value
