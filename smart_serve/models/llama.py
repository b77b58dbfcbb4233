"""Llama: Llama 3.x, DeepSeek-R1-Distill-Llama, Vicuna; and the language model inside LLaVA."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from smart_serve.checkpoint import LANGUAGE_MODEL_LAYOUTS, Checkpoint, build_module
from smart_serve.models.target import TargetModel, check_rope, eos_token_ids


def load_llama(
    checkpoint: Checkpoint,
    config: LlamaConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    image_token_id: int | None = None,
) -> TargetModel:
    """The language model; `image_token_id` where it is a LLaVA's."""
    check_rope(config)
    model: LlamaForCausalLM = build_module(lambda: LlamaForCausalLM(config))
    checkpoint.load_into(model, LANGUAGE_MODEL_LAYOUTS, dtype, device)
    return TargetModel(
        model.model,
        model.lm_head,
        image_token_id=image_token_id,
        eos_token_ids=eos_token_ids(checkpoint.folder, config),
    )
