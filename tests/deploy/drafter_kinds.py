"""A small drafter of each kind, and what a target sends it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import published_drafters as published
import torch
from small_models import IMAGE_TOKEN, small_text_config

from smart_serve.drafters.protocol import DrafterInfo, DraftInput

KINDS = ("ngram", "draft_model", "msd", "eagle3")


def name_of(kind: str, target: Path, folder: Path) -> str:
    text = small_text_config()
    match kind:
        case "eagle3":
            config = published.config_of(text, draft_vocab_size=published.DRAFT_VOCAB)
            return str(published.write(folder, config, published.eagle3_tensors(text), "bin"))
        case "msd":
            tensors = published.eagle_tensors(text)
            return str(published.write(folder, published.config_of(text), tensors, "bin"))
        case "draft_model":
            return f"draft_model:{target}"
        case _:
            return kind


def inputs_for(info: DrafterInfo, rng: np.random.Generator, start: int, count: int) -> DraftInput:
    """The opening input holds a picture of four tokens."""
    token_ids = rng.integers(0, 2, count)
    if start == 0:
        token_ids[2:6] = IMAGE_TOKEN
    rows = {"none": 0, "images": 4 if start == 0 else 0}.get(info.vectors, count)
    vectors = None
    if rows:
        vectors = torch.from_numpy(rng.normal(size=(rows, info.vector_size))).float()
    return DraftInput(0, start, token_ids, vectors)
