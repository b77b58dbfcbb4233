"""Prompts with 0 to 3 pictures of different sizes, and what transformers' Qwen2-VL says to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from engine_rig import ANSWER_TOKENS, Case
from small_models import IMAGE_TOKEN, PATCH_PX
from transformers import Qwen2VLForConditionalGeneration

from smart_serve.messages import ImageSpan

_PATCH_VALUES = 3 * 2 * PATCH_PX * PATCH_PX
"""Numbers in one patch: channels, frames (a picture is two equal ones), rows, columns."""


def make_qwen_cases(folder: Path, count: int) -> list[Case]:
    rng = np.random.default_rng(8)
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
    return [_make_case(model, rng, num_images=i % 4, name=f"{i}") for i in range(count)]


def _make_case(
    model: Qwen2VLForConditionalGeneration, rng: np.random.Generator, num_images: int, name: str
) -> Case:
    ids: list[int] = rng.integers(3, 57, int(rng.integers(2, 9))).tolist()
    grids = rng.integers(1, 5, (num_images, 2)).tolist()
    spans = []
    for index, (rows, columns) in enumerate(grids):
        spans.append(ImageSpan(len(ids), rows * columns, f"{name}-{index}", (rows, columns)))
        ids += [IMAGE_TOKEN] * (rows * columns)
        ids += rng.integers(3, 57, int(rng.integers(1, 6))).tolist()
    tokens = torch.tensor([ids])
    inputs: dict[str, torch.Tensor] = {}
    features: tuple[np.ndarray, ...] = ()
    if grids:
        thw = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids])
        patches = rng.normal(size=(int(thw.prod(-1).sum()), _PATCH_VALUES))
        pixels = torch.from_numpy(patches).float()
        inputs = {
            "pixel_values": pixels,
            "image_grid_thw": thw,
            "mm_token_type_ids": (tokens == IMAGE_TOKEN).int(),
        }
        with torch.inference_mode():
            encoded = model.get_image_features(pixels, thw).pooler_output
        features = tuple(rows.numpy() for rows in encoded)
    with torch.inference_mode():
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            **inputs,
        )
    return Case(tuple(ids), tuple(spans), features, tuple(out[0, len(ids) :].tolist()))
