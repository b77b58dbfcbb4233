"""Drafters by name or folder: what the published files hold is what runs."""

from __future__ import annotations

import json
from pathlib import Path

import published_drafters as published
import pytest
import torch
from small_models import IMAGE_TOKEN, VOCAB, small_text_config
from tokenizers import Tokenizer, models
from transformers import LlamaForCausalLM

from smart_serve.config import EngineConfig
from smart_serve.drafters.eagle3 import Eagle3, capture_layers
from smart_serve.drafters.load import load_drafter
from smart_serve.drafters.network import DraftNetwork
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.errors import ConfigError

CONFIG = EngineConfig(kv_tokens=1024)
TEXT = small_text_config()


def load(folder: Path | str, target: Path) -> DraftNetwork:
    drafter = load_drafter(str(folder), target, CONFIG)
    assert isinstance(drafter, NetworkDrafter)
    return drafter._network


def assert_holds(network: DraftNetwork, tensors: published.Tensors) -> None:
    """Every tensor of the file is in the module under its own name, and nothing else is."""
    state = network.module.state_dict()
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(state[name], tensor.to(state[name].dtype)), name


def target_embeddings(folder: Path) -> torch.Tensor:
    return LlamaForCausalLM.from_pretrained(folder).get_input_embeddings().weight


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("bias", [False, True])
def test_eagle(tmp_path: Path, small_llama: Path, form: published.Format, bias: bool) -> None:
    tensors = published.eagle_tensors(TEXT, bias=bias)
    folder = published.write(tmp_path / "d", published.config_of(TEXT, bias=bias), tensors, form)
    network = load(folder, small_llama)
    assert (network.kind, network.vectors, network.vector_size) == ("eagle", "hidden", 32)
    assert_holds(network, tensors)
    assert network.module.config.rope_parameters["rope_theta"] == 500000.0


def test_msd_over_a_multimodal_target(tmp_path: Path, small_llava: Path) -> None:
    """Its embeddings are the text model's: the image token has none."""
    config = published.config_of(TEXT, vocab_size=IMAGE_TOKEN)
    tensors = published.eagle_tensors(TEXT, bias=True)
    tensors["embed_tokens.weight"] = tensors["embed_tokens.weight"][:IMAGE_TOKEN]
    network = load(published.write(tmp_path / "d", config, tensors, "bin"), small_llava)
    assert (network.kind, network.num_embeddings) == ("msd", IMAGE_TOKEN)
    assert network.logits(torch.zeros(1, 32)).shape == (1, IMAGE_TOKEN)


def test_msd_over_qwen2_vl(tmp_path: Path, small_qwen2_vl: Path) -> None:
    """Biases on q, k and v; three axes where the configuration says so."""
    rope = {"type": "mrope", "mrope_section": [2, 1, 1]}
    config = published.config_of(TEXT, model_type="qwen2_vl", rope_scaling=rope, qkv_bias=True)
    tensors = published.eagle_tensors(TEXT, bias=True, qkv_bias=True)
    network = load(published.write(tmp_path / "d", config, tensors, "bin"), small_qwen2_vl)
    assert (network.kind, network.has_mrope) == ("msd", True)
    assert_holds(network, tensors)


def test_embeddings_that_are_left_out_are_the_targets(tmp_path: Path, small_llama: Path) -> None:
    tensors = published.eagle_tensors(TEXT, embeds=False)
    folder = published.write(tmp_path / "d", published.config_of(TEXT), tensors, "safetensors")
    network = load(folder, small_llama)
    tensors["embed_tokens.weight"] = target_embeddings(small_llama)
    assert_holds(network, tensors)


def test_eagle3(tmp_path: Path, small_llama: Path) -> None:
    tensors = published.eagle3_tensors(TEXT)
    config = published.config_of(TEXT, draft_vocab_size=published.DRAFT_VOCAB)
    network = load(published.write(tmp_path / "d", config, tensors, "bin"), small_llama)
    assert isinstance(network, Eagle3)
    assert (network.kind, network.vectors, network.vector_size) == ("eagle3", "layers", 96)
    assert network.target_ids.tolist() == tensors["t2d"].nonzero()[:, 0].tolist()
    del tensors["t2d"]
    tensors["embed_tokens.weight"] = target_embeddings(small_llama)
    assert_holds(network, tensors)


@pytest.mark.parametrize(
    ("num_layers", "layers"),
    [(32, (2, 16, 29)), (80, (2, 40, 77)), (8, (2, 4, 5)), (4, (1, 2, 2)), (2, (0, 1, 1))],
)
def test_captured_layers(num_layers: int, layers: tuple[int, ...]) -> None:
    assert capture_layers(num_layers) == layers


def test_a_published_folder_is_converted_once(tmp_path: Path, small_llama: Path) -> None:
    tensors = published.eagle_tensors(TEXT)
    folder = published.write(tmp_path / "d", published.config_of(TEXT), tensors, "bin")
    load(folder, small_llama)
    (folder / "pytorch_model.bin").unlink()
    assert_holds(load(folder, small_llama), tensors)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hidden_size": 64}, "made for another model"),
        ({"draft_vocab_size": 24}, "'d2t' has shape"),
        ({"d2t": torch.full((published.DRAFT_VOCAB,), VOCAB)}, "outside the target's vocabulary"),
        ({"d2t": None}, "'d2t' is missing"),
        ({"fc.weight": None}, "'fc.weight' is missing"),
        ({"midlayer.self_attn.q_proj.weight": torch.zeros(32, 32)}, "q_proj.weight' has shape"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, small_llama: Path, change: dict[str, object], why: str
) -> None:
    config = published.config_of(TEXT, draft_vocab_size=published.DRAFT_VOCAB)
    tensors = published.eagle3_tensors(TEXT)
    for name, value in change.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif value is None:
            del tensors[name]
        else:
            config[name] = value
    with pytest.raises(ConfigError, match=why):
        load(published.write(tmp_path / "d", config, tensors, "safetensors"), small_llama)


def test_a_whole_model_must_be_said_to_be_one(small_llama: Path) -> None:
    with pytest.raises(ConfigError, match="draft_model:"):
        load(small_llama, small_llama)


def test_a_draft_model_sees_pictures_only_as_the_target_does(
    small_llama: Path, small_llava: Path
) -> None:
    assert load(f"draft_model:{small_llava}", small_llava).vectors == "images"
    assert load(f"draft_model:{small_llama}", small_llava).vectors == "none"
    assert load(f"draft_model:{small_llava}", small_llama).vectors == "none"


def write_model(folder: Path, vocab_size: int, tokens: list[str] | None = None) -> Path:
    config = small_text_config()
    config.vocab_size = vocab_size
    LlamaForCausalLM(config).save_pretrained(folder)
    if tokens is not None:
        vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
        Tokenizer(models.WordLevel(vocabulary, "a")).save(str(folder / "tokenizer.json"))
    return folder


def test_a_draft_model_of_another_size_is_refused(tmp_path: Path, small_llama: Path) -> None:
    other = write_model(tmp_path / "other", VOCAB - 1)
    with pytest.raises(ConfigError, match="60 tokens and the target 61"):
        load(f"draft_model:{other}", small_llama)


def test_a_draft_model_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    target = write_model(tmp_path / "target", 8, ["a", "b", "c", "d"])
    swapped = write_model(tmp_path / "swapped", 8, ["a", "c", "b", "d"])
    with pytest.raises(ConfigError, match="token 1 is 'c' and the target's is 'b'"):
        load(f"draft_model:{swapped}", target)
    fewer = write_model(tmp_path / "fewer", 6, ["a", "b", "c"])
    network = load(f"draft_model:{fewer}", target)
    assert not network.knows(torch.tensor([6]).numpy())
    more = load(f"draft_model:{target}", fewer)
    assert more.logits(torch.zeros(1, 32)).shape == (1, 6)


def test_a_tokenizer_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    target = write_model(tmp_path / "target", 8, ["a", "b"])
    other = write_model(tmp_path / "other", 8)
    (other / "tokenizer.json").write_text(json.dumps({"model": 7}))
    with pytest.raises(ConfigError, match="not a readable tokenizer"):
        load(f"draft_model:{other}", target)
