"""Random drafters, written as the published ones are: names, shapes, dtypes, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

Format = Literal["bin", "safetensors"]
Tensors = dict[str, torch.Tensor]
DRAFT_VOCAB = 23
"""Of EAGLE-3's reduced vocabulary."""


def config_of(text: LlamaConfig, **changes: Any) -> dict[str, Any]:
    """config.json after EAGLE's own training configurations, which transformers 4.28 wrote."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "num_hidden_layers": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.28.1",
        "use_cache": True,
        "vocab_size": text.vocab_size,
        "rope_theta": 500000.0,
        **changes,
    }


def eagle_tensors(
    text: LlamaConfig, *, bias: bool = False, qkv_bias: bool = False, embeds: bool = True
) -> Tensors:
    """EAGLE-1/2 and MSD."""
    h = text.hidden_size
    shapes = {"fc.weight": (h, 2 * h), **_layer("layers.0", text, h)}
    if bias:
        shapes["fc.bias"] = (h,)
    if qkv_bias:
        for part in "qkv":
            size = shapes[f"layers.0.self_attn.{part}_proj.weight"][0]
            shapes[f"layers.0.self_attn.{part}_proj.bias"] = (size,)
    if embeds:
        shapes["embed_tokens.weight"] = (text.vocab_size, h)
    return _random(shapes)


def eagle3_tensors(text: LlamaConfig, draft_vocab: int = DRAFT_VOCAB) -> Tensors:
    """Without embeddings, as the published ones; d2t and t2d of a reduced vocabulary."""
    h = text.hidden_size
    tensors = _random(
        {
            "fc.weight": (h, 3 * h),
            **_layer("midlayer", text, 2 * h),
            "midlayer.hidden_norm.weight": (h,),
            "midlayer.input_layernorm.weight": (h,),
            "norm.weight": (h,),
            "lm_head.weight": (draft_vocab, h),
        }
    )
    generator = torch.Generator().manual_seed(8)
    kept = torch.randperm(text.vocab_size, generator=generator)[:draft_vocab].sort().values
    tensors["d2t"] = kept - torch.arange(draft_vocab)
    tensors["t2d"] = torch.zeros(text.vocab_size, dtype=torch.bool)
    tensors["t2d"][kept] = True
    return tensors


def write(folder: Path, config: dict[str, Any], tensors: Tensors, form: Format) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if form == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    return folder


def _layer(name: str, text: LlamaConfig, inputs: int) -> dict[str, tuple[int, ...]]:
    h, mlp = text.hidden_size, text.intermediate_size
    head_dim = h // text.num_attention_heads
    kv = text.num_key_value_heads * head_dim
    return {
        f"{name}.self_attn.q_proj.weight": (h, inputs),
        f"{name}.self_attn.k_proj.weight": (kv, inputs),
        f"{name}.self_attn.v_proj.weight": (kv, inputs),
        f"{name}.self_attn.o_proj.weight": (h, h),
        f"{name}.mlp.gate_proj.weight": (mlp, h),
        f"{name}.mlp.up_proj.weight": (mlp, h),
        f"{name}.mlp.down_proj.weight": (h, mlp),
        f"{name}.post_attention_layernorm.weight": (h,),
    }


def _random(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    generator = torch.Generator().manual_seed(3)
    return {
        name: (float("norm" in name) + 0.12 * torch.randn(shape, generator=generator)).half()
        for name, shape in shapes.items()
    }
