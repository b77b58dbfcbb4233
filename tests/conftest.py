"""Small random target folders, as transformers saves them, for every test that runs a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import IMAGE_TOKEN, small_text_config
from transformers import (
    CLIPVisionConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small_llama")
    with torch.random.fork_rng():
        torch.manual_seed(11)
        LlamaForCausalLM(small_text_config()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 px, patches of 12: four image tokens a picture."""
    folder = tmp_path_factory.mktemp("small_llava")
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=24,
        patch_size=12,
        projection_dim=16,
        initializer_range=0.25,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=small_text_config(),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(12)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder
