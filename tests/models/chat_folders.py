"""Small random LLaVA and Qwen2-VL folders that can be talked to: weights, tokenizer, template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import published_drafters as published
import torch
from small_models import small_qwen2_vl_config
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from smart_serve.bundled import TARGET_FOLDER
from tests.frontend.qwen_folder import write_qwen_folder


def write_llava(folder: Path, text_config: PretrainedConfig) -> None:
    """Nine tokens a picture; the bundled model's tokenizer and template."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TARGET_FOLDER / name, folder / name)
    bundled = json.loads((TARGET_FOLDER / "config.json").read_text())
    text_config.vocab_size = bundled["text_config"]["vocab_size"]
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
        projection_dim=16,
        initializer_range=0.25,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text_config,
        image_token_index=bundled.get("image_token_index", bundled.get("image_token_id")),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(21)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    ).save_pretrained(folder)


def write_qwen2_vl(folder: Path) -> None:
    """Four to sixteen tokens a picture."""
    ids = write_qwen_folder(folder)
    config = small_qwen2_vl_config()
    config.text_config.vocab_size = max(ids.values()) + 1
    config.text_config.eos_token_id = ids["<|im_end|>"]
    config.image_token_id = ids["<|image_pad|>"]
    config.video_token_id = ids["<|video_pad|>"]
    config.vision_start_token_id = ids["<|vision_start|>"]
    config.vision_end_token_id = ids["<|vision_end|>"]
    with torch.random.fork_rng():
        torch.manual_seed(22)
        Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 4 * 64,
        "max_pixels": 16 * 64,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def write_msd(folder: Path, target: Path) -> Path:
    """An MSD drafter for `target`; one for Qwen2-VL has biases and M-RoPE, as its target has."""
    config = AutoConfig.from_pretrained(target)
    text, is_qwen = config.text_config, config.model_type == "qwen2_vl"
    tensors = published.eagle_tensors(text, bias=True, qkv_bias=is_qwen)
    changes = {}
    if is_qwen:
        section = text.rope_parameters["mrope_section"]
        scaling = {"type": "mrope", "mrope_section": section}
        changes = {"model_type": "qwen2_vl", "rope_scaling": scaling}
    return published.write(folder, published.config_of(text, **changes), tensors, "bin")
