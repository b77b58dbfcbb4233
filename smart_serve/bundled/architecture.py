"""The shapes of the bundled models, chosen so that both together fit in 16 MB of bfloat16."""

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

IMAGE_SIDE_PX = 96
PATCH_SIDE_PX = 12
IMAGE_TOKENS = (IMAGE_SIDE_PX // PATCH_SIDE_PX) ** 2
VOCABULARY = 640
MAX_POSITIONS = 2048


def vision_config() -> CLIPVisionConfig:
    """Four layers of width 192 over 64 patches."""
    return CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=IMAGE_SIDE_PX,
        patch_size=PATCH_SIDE_PX,
        projection_dim=192,
        hidden_act="gelu",
    )


def text_config(layers: int) -> LlamaConfig:
    """Llama layers with heads of 128, the head size that attention kernels are written for."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def target_config(image_token: int) -> LlavaConfig:
    """The LLaVA-1.5 layout: CLIP patches without CLS, a two-layer projector, a Llama."""
    return LlavaConfig(
        vision_config=vision_config(),
        text_config=text_config(layers=6),
        image_token_index=image_token,
        image_seq_length=IMAGE_TOKENS,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
