"""The shape of the small random models."""

from __future__ import annotations

from transformers import LlamaConfig, Qwen2VLConfig

VOCAB = 61
IMAGE_TOKEN = 60
PATCH_PX = 4
"""Side of a patch of the small Qwen2-VL; four patches make one image token."""


def small_text_config() -> LlamaConfig:
    """Grouped heads, an untied head and wide weights, so that greedy paths are not constant."""
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.25,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def small_qwen2_vl_config() -> Qwen2VLConfig:
    """As small; each axis of M-RoPE turns at least one of the four frequencies."""
    text = small_text_config().to_dict()
    for name in ("model_type", "head_dim", "attention_bias", "mlp_bias", "pretraining_tp"):
        text.pop(name, None)
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 100.0,
        "mrope_section": [2, 1, 1],
    }
    vision = {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": text["hidden_size"],
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": PATCH_PX,
        "initializer_range": 0.25,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE_TOKEN,
        video_token_id=59,
        vision_start_token_id=58,
        vision_end_token_id=57,
    )
