"""Loading is strict: the first wrong tensor is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from smart_serve.checkpoint import Checkpoint, build_module
from smart_serve.errors import ConfigError


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint(folder)


GOOD = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def test_prefixes_are_selected_and_renamed(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, {**GOOD, "b.weight": torch.zeros(1)})
    assert checkpoint.names() == ("a.bias", "a.weight", "b.weight")
    assert set(checkpoint.tensors({"a.": "x."})) == {"x.bias", "x.weight"}


def test_parameters_take_the_dtype_asked_for(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    write(tmp_path, GOOD).load_into(module, {"a.": ""}, torch.bfloat16, "cpu")
    assert module.weight.dtype == torch.bfloat16
    assert torch.equal(module.weight.float(), GOOD["a.weight"])


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"a.weight": GOOD["a.weight"]}, "'bias' is missing"),
        ({**GOOD, "a.extra": torch.ones(1)}, "unexpected tensor 'extra'"),
        ({**GOOD, "a.bias": torch.ones(3)}, "'bias' has shape"),
        ({"b.weight": torch.ones(1)}, "no tensor under 'a.*'"),
        ({**GOOD, "a.bias": torch.ones(2, dtype=torch.int8)}, "'bias' is stored as torch.int8"),
        (
            {**GOOD, "a.bias": torch.ones(2).to(torch.float8_e4m3fn)},
            "'bias' is stored as torch.float8_e4m3fn",
        ),
    ],
)
def test_a_wrong_tensor_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], sentence: str
) -> None:
    checkpoint = write(tmp_path, tensors)
    with pytest.raises(ConfigError) as caught:
        checkpoint.load_into(nn.Linear(3, 2), {"a.": ""}, torch.float32, "cpu")
    assert sentence in caught.value.message


def test_shards_are_read_through_the_index(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a.weight": GOOD["a.weight"]}, tmp_path / "one.safetensors")
    save_file({"a.bias": GOOD["a.bias"]}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a.weight": "one.safetensors", "a.bias": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    module = nn.Linear(3, 2)
    Checkpoint(tmp_path).load_into(module, {"a.": ""}, torch.float32, "cpu")
    assert torch.equal(module.weight, GOOD["a.weight"])
    index["weight_map"]["a.bias"] = "one.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"one\.safetensors does not hold 'a\.bias'"):
        Checkpoint(tmp_path).load_into(module, {"a.": ""}, torch.float32, "cpu")
    index["weight_map"]["a.bias"] = "two.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "two.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ConfigError, match="readable safetensors"):
        Checkpoint(tmp_path).load_into(module, {"a.": ""}, torch.float32, "cpu")


def test_a_tied_head_is_loaded_and_rotary_buffers_keep_float32(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        saved = LlamaForCausalLM(config).eval()
    saved.save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    assert not [name for name in checkpoint.names() if "lm_head" in name]
    model = build_module(lambda: LlamaForCausalLM(config))
    layout = {"model.": "model.", "lm_head.": "lm_head."}
    checkpoint.load_into(model, layout, torch.float32, "cpu")
    ids = torch.arange(5).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, saved(input_ids=ids).logits)
    checkpoint.load_into(model, layout, torch.bfloat16, "cpu")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_parts_of_no_known_model_are_named(tmp_path: Path) -> None:
    good = {"model.norm.weight": torch.ones(1), "visual.merger.weight": torch.ones(1)}
    write(tmp_path, good).check_parts()
    with pytest.raises(ConfigError, match=r"unexpected tensor 'adapter\.weight'"):
        write(tmp_path, {**good, "adapter.weight": torch.ones(1)}).check_parts()


def test_pickled_weights_are_refused_in_words_that_help(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="save_pretrained"):
        Checkpoint(tmp_path)
