"""Every family's folder gives transformers' logits, sharded or not, in every key layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine_forward import plain_logits
from safetensors.torch import load_file, save_file
from small_models import small_qwen2_vl_config, small_text_config
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaForCausalLM,
    Qwen2VLForConditionalGeneration,
)

from smart_serve.errors import ConfigError
from smart_serve.models.families import load_target

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
"""Llama 3.1's scaling, for a context as short as the small models'."""
TOKENS = torch.arange(3, 53)


def save_llama(folder: Path, seed: int, **changes: object) -> None:
    config = small_text_config()
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="10KB")


def reference(folder: Path) -> torch.Tensor:
    is_text = json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    loader = AutoModelForCausalLM if is_text else AutoModelForImageTextToText
    model = loader.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=TOKENS[None]).logits[0]


def check(folder: Path) -> torch.Tensor:
    expected = reference(folder)
    found = plain_logits(load_target(folder, torch.float32, "cpu"), TOKENS)
    assert (found - expected).abs().max() < 1e-4
    return expected


def test_llama_31_scaling_is_applied(tmp_path: Path) -> None:
    for name, rope in (("scaled", LLAMA3), ("plain", {**LLAMA3, "rope_type": "default"})):
        save_llama(tmp_path / name, 3, rope_parameters=rope)
    assert len(list((tmp_path / "scaled").glob("*.safetensors"))) > 3
    # The control: the scaling does change what the model says.
    assert (check(tmp_path / "scaled") - check(tmp_path / "plain")).abs().max() > 0.1


def test_multi_head_attention_and_tied_heads_load(tmp_path: Path) -> None:
    """Vicuna has as many key heads as query heads; small Llama 3.2 models tie their heads."""
    save_llama(tmp_path, 4, num_key_value_heads=4, tie_word_embeddings=True)
    check(tmp_path)


def test_llava_and_qwen2_vl_give_their_own_logits(small_llava: Path, small_qwen2_vl: Path) -> None:
    check(small_llava)
    check(small_qwen2_vl)


def test_a_tied_qwen2_vl_loads(tmp_path: Path) -> None:
    config = small_qwen2_vl_config()
    config.tie_word_embeddings = True
    with torch.random.fork_rng():
        torch.manual_seed(5)
        Qwen2VLForConditionalGeneration(config).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    check(tmp_path)


def test_qwen2_vl_names_in_memory_load(small_qwen2_vl: Path, tmp_path: Path) -> None:
    def renamed(name: str) -> str:
        if name.startswith("visual."):
            return f"model.{name}"
        return name.replace("model.", "model.language_model.", 1)

    tensors = load_file(small_qwen2_vl / "model.safetensors")
    save_file({renamed(k): v for k, v in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((small_qwen2_vl / "config.json").read_bytes())
    found = plain_logits(load_target(tmp_path, torch.float32, "cpu"), TOKENS)
    assert torch.equal(
        found, plain_logits(load_target(small_qwen2_vl, torch.float32, "cpu"), TOKENS)
    )


def test_the_flat_configuration_of_the_hub_is_read(small_qwen2_vl: Path, tmp_path: Path) -> None:
    config = json.loads((small_qwen2_vl / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    for name in ("model_type", "layer_types"):
        text.pop(name)
    flat = {
        **text,
        **config,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "vision_token_id": 56,
    }
    flat["vision_config"] = {**config["vision_config"], "model_type": "qwen2_vl"}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    weights = (small_qwen2_vl / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    target = load_target(tmp_path, torch.float32, "cpu")
    assert (target.has_mrope, target.max_context, target.image_token_id) == (True, 512, 60)
    whole = load_target(small_qwen2_vl, torch.float32, "cpu")
    assert torch.equal(plain_logits(target, TOKENS), plain_logits(whole, TOKENS))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "bert"}, "not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "RoPE"),
        ({"num_hidden_layers": 3}, r"'model\.layers\.2\.\S+' is missing"),
        ({"num_hidden_layers": 1}, r"unexpected tensor 'model\.layers\.1\."),
        ({"intermediate_size": 40}, r"'model\.layers\.0\.mlp\.\S+' has shape"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(
    small_llama: Path, tmp_path: Path, change: dict[str, object], word: str
) -> None:
    config = json.loads((small_llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    weights = (small_llama / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ConfigError, match=word):
        load_target(tmp_path, torch.float32, "cpu")


def test_sliding_windows_are_refused(small_qwen2_vl: Path, tmp_path: Path) -> None:
    config = json.loads((small_qwen2_vl / "config.json").read_text())
    config["text_config"] |= {
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 0,
        "layer_types": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = (small_qwen2_vl / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ConfigError, match="sliding"):
        load_target(tmp_path, torch.float32, "cpu")
