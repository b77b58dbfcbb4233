"""A folder with the edge's files of a Qwen2-VL: a byte-level tokenizer, a template, sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = (
    "{%- if messages[0].role != 'system' %}<|im_start|>system\nAnswer well.<|im_end|>\n{% endif %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{%- if m.content is string %}{{ m.content }}"
    "{%- else %}{%- for part in m.content %}"
    "{%- if part.type == 'image' or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif 'text' in part %}{{ part.text }}{%- endif %}{%- endfor %}{%- endif %}"
    "<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Of the same make as the published one: a default system turn, text as strings or parts."""


def write_qwen_folder(folder: Path) -> dict[str, int]:
    """Ids of the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    ids = {text: tokenizer.token_to_id(text) for text in SPECIAL}
    spec = json.loads(tokenizer.to_str())
    for token in spec["added_tokens"]:
        # Published tokenizers mark them all; the configuration alone must do.
        token["special"] = token["content"] not in ("<|image_pad|>", "<|vision_start|>")
    config: dict[str, Any] = {
        "model_type": "qwen2_vl",
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "max_position_embeddings": 4_096,
        "eos_token_id": ids["<|im_end|>"],
        "vision_config": {},
    }
    files = {
        "tokenizer.json": spec,
        "config.json": config,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "chat_template.json": {"chat_template": TEMPLATE},
        "preprocessor_config.json": {"min_pixels": 4 * 28 * 28, "max_pixels": 64 * 28 * 28},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return ids
