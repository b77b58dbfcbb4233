"""From a checkpoint folder to a `TargetModel`, by the model type that its config names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig

from smart_serve.checkpoint import Checkpoint
from smart_serve.errors import ConfigError
from smart_serve.models.llama import load_llama
from smart_serve.models.llava import load_llava
from smart_serve.models.qwen2_vl import load_qwen2_vl
from smart_serve.models.target import TargetModel

LOADERS: dict[str, Callable[..., TargetModel]] = {
    "llama": load_llama,
    "llava": load_llava,
    "qwen2_vl": load_qwen2_vl,
}
"""By the model type of config.json; how to write one is told in deploy/docs/adding-a-model.md."""


def load_target(folder: Path, dtype: torch.dtype, device: torch.device | str) -> TargetModel:
    """The language part of the model in `folder`. Raises `ConfigError` for other families."""
    checkpoint = Checkpoint(folder)
    model_type = checkpoint.config.get("model_type")
    loader = LOADERS.get(str(model_type))
    if loader is None:
        known = ", ".join(LOADERS)
        raise ConfigError(f"{folder}: model type '{model_type}' is not supported ({known} are)")
    checkpoint.check_parts()
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return loader(checkpoint, config, dtype, device)
