"""Qwen2-VL: Qwen2 with biased projections and M-RoPE; pictures of any size."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextConfig, Qwen2VLTextModel

from smart_serve.checkpoint import LANGUAGE_MODEL_LAYOUTS, Checkpoint, build_module
from smart_serve.errors import ConfigError
from smart_serve.models.target import TargetModel, check_rope, eos_token_ids


class Qwen2VLForCausalLM(nn.Module):
    """The stock language model and its head, which transformers joins only with the vision tower.

    Named as in checkpoints: `model.*` and `lm_head.*`.
    """

    def __init__(self, config: Qwen2VLTextConfig, *, tie_word_embeddings: bool) -> None:
        super().__init__()
        self.model = Qwen2VLTextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight


def load_qwen2_vl(
    checkpoint: Checkpoint, config: Qwen2VLConfig, dtype: torch.dtype, device: torch.device | str
) -> TargetModel:
    """The language model of a Qwen2-VL folder; `visual.*` is left alone."""
    text_config = config.text_config
    check_rope(text_config)
    if "sliding_attention" in text_config.layer_types:
        raise ConfigError("Qwen2-VL with sliding-window attention is not supported")
    tied = config.tie_word_embeddings
    model = build_module(lambda: Qwen2VLForCausalLM(text_config, tie_word_embeddings=tied))
    checkpoint.load_into(model, LANGUAGE_MODEL_LAYOUTS, dtype, device)
    return TargetModel(
        model.model,
        model.lm_head,
        image_token_id=config.image_token_id,
        eos_token_ids=eos_token_ids(checkpoint.folder, text_config),
        has_mrope=True,
    )
