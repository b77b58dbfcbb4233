"""The shape of the small random models."""

from __future__ import annotations

from transformers import LlamaConfig

VOCAB = 61
IMAGE_TOKEN = 60


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
