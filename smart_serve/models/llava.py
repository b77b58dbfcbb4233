"""LLaVA-1.5: a Llama whose pictures are rows of embeddings among the others."""

from __future__ import annotations

import torch
from transformers import LlavaConfig

from smart_serve.checkpoint import Checkpoint
from smart_serve.errors import ConfigError
from smart_serve.models.llama import load_llama
from smart_serve.models.target import TargetModel


def load_llava(
    checkpoint: Checkpoint, config: LlavaConfig, dtype: torch.dtype, device: torch.device | str
) -> TargetModel:
    """The language model of a LLaVA folder; vision parts are left alone."""
    inner = config.text_config.model_type
    if inner != "llama":
        raise ConfigError(f"a LLaVA model over '{inner}' is not supported (over llama it is)")
    return load_llama(
        checkpoint, config.text_config, dtype, device, image_token_id=config.image_token_id
    )
