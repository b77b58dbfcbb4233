"""Llama: Llama 3.x, DeepSeek-R1-Distill-Llama, Vicuna; and the language model inside LLaVA."""

from __future__ import annotations

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from smart_serve.checkpoint import LANGUAGE_MODEL_LAYOUTS, Checkpoint, build_module
from smart_serve.models.attention import ATTENTION


def load_llama(
    checkpoint: Checkpoint, config: LlamaConfig, dtype: torch.dtype, device: torch.device | str
) -> LlamaForCausalLM:
    """The stock module with our attention; weights read by prefix, vision parts left alone."""
    config = copy.deepcopy(config)
    config._attn_implementation = ATTENTION
    model: LlamaForCausalLM = build_module(lambda: LlamaForCausalLM(config))
    checkpoint.load_into(model, LANGUAGE_MODEL_LAYOUTS, dtype, device)
    return model
