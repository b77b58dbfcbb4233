"""From a checkpoint folder to a `TargetModel`, by the model type that its config names."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from smart_serve.checkpoint import Checkpoint, read_json
from smart_serve.errors import ConfigError
from smart_serve.models.llama import load_llama
from smart_serve.models.target import TargetModel


def load_target(folder: Path, dtype: torch.dtype, device: torch.device | str) -> TargetModel:
    """The language part of the model in `folder`. Raises `ConfigError` for other families."""
    checkpoint = Checkpoint(folder)
    config = AutoConfig.from_pretrained(folder)
    text_config, image_token_id = _language_part(config)
    model = load_llama(checkpoint, text_config, dtype, device)
    return TargetModel(
        model.model,
        model.lm_head,
        image_token_id=image_token_id,
        eos_token_ids=eos_token_ids(folder, text_config),
    )


def _language_part(config: PretrainedConfig) -> tuple[PretrainedConfig, int | None]:
    if config.model_type == "llava" and config.text_config.model_type == "llama":
        return config.text_config, config.image_token_id
    if config.model_type == "llama":
        return config, None
    raise ConfigError(f"model type '{config.model_type}' is not supported (llama, llava are)")


def eos_token_ids(folder: Path, text_config: PretrainedConfig) -> frozenset[int]:
    """Tokens that end an answer: generation_config.json's, else the model config's."""
    path = folder / "generation_config.json"
    ids = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = text_config.eos_token_id if ids is None else ids
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list) else [ids])
