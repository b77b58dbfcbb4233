"""Small random target folders, as transformers saves them, for every test that runs a model."""

from __future__ import annotations

import triton_interpreter  # noqa: F401

# isort: split
import os
from pathlib import Path

import pytest
import torch
from small_models import IMAGE_TOKEN, PATCH_PX, small_qwen2_vl_config, small_text_config
from transformers import (
    CLIPVisionConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

# Before anything starts a process: no test reads or writes the user's measured costs. What one run
# of the tests has measured serves the next one, until the code that is measured changes.
os.environ["SMART_SERVE_COSTS"] = str(Path(__file__).parent.parent / ".pytest_cache" / "costs")


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


@pytest.fixture(scope="session")
def small_qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image token is 8 x 8 pixels; a picture becomes 4 to 25 of them."""
    folder = tmp_path_factory.mktemp("small_qwen2_vl")
    with torch.random.fork_rng():
        torch.manual_seed(13)
        Qwen2VLForConditionalGeneration(small_qwen2_vl_config()).save_pretrained(folder)
    size = {"shortest_edge": 4 * 8 * 8, "longest_edge": 25 * 8 * 8}
    Qwen2VLImageProcessorPil(patch_size=PATCH_PX, size=size).save_pretrained(folder)
    return folder
