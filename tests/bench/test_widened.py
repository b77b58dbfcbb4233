"""A widened model is the narrow one at the price of a big one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from smart_serve.bench.measured_limits import Limits
from smart_serve.bench.simulator.shapes import SHAPES, WEIGHT_BYTES, ModelShape
from smart_serve.bench.widened import described, widen, widened_pair
from smart_serve.bench.workload import picture_questions
from smart_serve.checkpoint import Checkpoint, read_json
from smart_serve.cli import main
from smart_serve.errors import ConfigError
from smart_serve.llm import LLM
from smart_serve.messages import SamplingParams
from smart_serve.models.families import load_target
from smart_serve.models.folders import resolve_drafter, resolve_model

# Heads that share keys, sizes that are no multiples of each other, more layers, more tokens.
SMALL = ModelShape("small", 8, 450, 6, 3, 1000, 1000, context=512)
HEAD_DIM = 128
"""The bundled pair's, which widening leaves as it is: the big models have the same."""
BUNDLED = resolve_model("bundled"), resolve_drafter("bundled")
Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return widen(*BUNDLED, SMALL, tmp_path_factory.mktemp("wide"), torch.float32)


def outcomes(pair: Pair, temperature: float) -> list[tuple[tuple[int, ...], int, int]]:
    """Tokens, accepted tokens and steps of some answers about pictures."""
    llm = LLM(*pair, policy="eagle2", dtype="float32", max_running=4, prefix_reuse=False)
    asked = [
        {"prompt": one.text, "images": list(one.pictures)} for one in picture_questions(4, seed=7)
    ]
    sampling = SamplingParams(max_tokens=40, temperature=temperature, seed=3)
    return [
        (one.token_ids, one.stats.accepted_tokens, one.stats.target_steps)
        for one in llm.generate(asked, sampling)
    ]


def test_the_big_models_heads_are_as_wide_as_the_bundled_ones() -> None:
    assert {shape.hidden_size // shape.num_heads for shape in SHAPES.values()} == {HEAD_DIM}


def test_what_its_passes_read_is_what_the_big_models_would(tmp_path: Path) -> None:
    shape = replace(SMALL, hidden_size=6 * HEAD_DIM)
    llm = LLM(*widen(*BUNDLED, shape, tmp_path, torch.float32), dtype="float32", max_running=1)
    limits = Limits.measured(llm.engine.model, llm.engine.drafting.drafter)
    assert limits.drafter is not None
    target, drafter = limits.target, limits.drafter
    assert target.body_weights == shape.num_layers * shape.layer_params
    assert drafter.body_weights == shape.draft_params
    assert target.head_weights == drafter.head_weights == shape.head_params
    kv_bytes = shape.num_layers * shape.kv_bytes_per_layer
    assert target.kv_elements * WEIGHT_BYTES == kv_bytes
    narrow = LLM(*BUNDLED, dtype="float32", max_running=1).engine.model
    assert Limits.measured(narrow, None).target.body_weights < target.body_weights


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_and_acceptance_are_those_of_the_narrow_pair(wide: Pair, temperature: float) -> None:
    expected = outcomes(BUNDLED, temperature)
    assert any(accepted > 0 for _, accepted, _ in expected)
    assert outcomes(wide, temperature) == expected


def test_the_control_that_writes_to_the_padding_gives_others(tmp_path: Path) -> None:
    pair = widen(*BUNDLED, SMALL, tmp_path, torch.float32)
    (file,) = pair[0].glob("*.safetensors")
    tensors = load_file(file)
    tensors["language_model.model.layers.0.mlp.down_proj.weight"][400:] = 0.02
    save_file(tensors, file, metadata={"format": "pt"})
    assert outcomes(pair, 0.0) != outcomes(BUNDLED, 0.0)


def test_transformers_reads_it_and_agrees(wide: Pair) -> None:
    token_ids = torch.tensor([[5, 100, 200, 297, 300]])
    narrow, other = (
        LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        .eval()(input_ids=token_ids)
        .logits
        for folder in (BUNDLED[0], wide[0])
    )
    num_tokens = narrow.shape[-1]
    assert torch.allclose(other[..., :num_tokens], narrow, atol=1e-4)
    # No token that the narrow vocabulary lacks is ever drawn.
    assert other.softmax(-1)[..., num_tokens:].max() == 0.0


def matrices(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    prefix = {"language_model.model.layers.": "layers.", "layers.": "layers."}
    for name, tensor in Checkpoint(folder).tensors(prefix).items():
        if tensor.dim() == 2:
            yield name, tensor


def test_matrices_have_the_shape_and_are_not_mostly_zero(wide: Pair) -> None:
    for folder, num_layers in zip(wide, (SMALL.num_layers, 1), strict=True):
        found = dict(matrices(folder))
        assert len(found) == 7 * num_layers
        assert {len(one) for name, one in found.items() if "gate" in name} == {1000}
        assert {one.shape for name, one in found.items() if "k_proj" in name} == {(3 * 128, 450)}
        for one in found.values():
            assert one.count_nonzero() > 0.3 * one.numel()


@pytest.mark.parametrize(
    ("name", "billions"),
    # As the models are known, without vision.
    [("llava-1.5-7b", 6.74), ("llava-1.5-13b", 13.0), ("qwen2-vl-7b", 7.6), ("llama-3.1-8b", 8.03)],
)
def test_shapes_have_as_many_parameters_as_their_models(name: str, billions: float) -> None:
    shape = SHAPES[name]
    config = LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.mlp_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=128,
        vocab_size=shape.vocab_size,
    )
    with torch.device("meta"):
        num_parameters = sum(one.numel() for one in LlamaForCausalLM(config).parameters())
    assert num_parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_what_is_real_and_what_is_borrowed_is_said() -> None:
    for name, shape in SHAPES.items():
        text = described(shape)
        assert text.startswith(name)
        assert str(shape.hidden_size) in text
        assert "Borrowed" in text
    assert "8 layers of its 80" in described(SHAPES["llama-3.3-70b-layer-sample"])


def test_a_shape_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        widen(*BUNDLED, replace(SMALL, vocab_size=600), tmp_path, torch.float32)


def test_half_precision_without_the_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float16"):
        widen(*BUNDLED, SMALL, tmp_path, torch.float16)


def test_it_is_kept_only_where_it_is_asked_to(tmp_path: Path) -> None:
    with widened_pair(*BUNDLED, SMALL, torch.float32) as (target, _):
        assert (target / "config.json").is_file()
    assert not target.exists()
    kept = tmp_path / "kept"
    with widened_pair(*BUNDLED, SMALL, torch.float32, kept) as (target, drafter):
        pass
    assert (target, drafter) == (kept / "target", kept / "drafter")
    assert target.exists()
    with (
        pytest.raises(ConfigError, match="exists"),
        widened_pair(*BUNDLED, SMALL, torch.float32, kept),
    ):
        pass


def test_the_small_files_come_along(wide: Pair) -> None:
    assert (wide[0] / "tokenizer.json").read_bytes() == (BUNDLED[0] / "tokenizer.json").read_bytes()
    assert read_json(wide[0] / "config.json")["text_config"]["num_hidden_layers"] == 8


def test_bench_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Hardly larger than the bundled pair: first of all the bench measures what its steps cost.
    shape = ModelShape("small", 7, 264, 2, 2, 640, 640, context=512)
    monkeypatch.setitem(SHAPES, shape.name, shape)
    work, figures = tmp_path / "work.jsonl", tmp_path / "figures.json"
    work.write_text('{"prompt": "How many circles are there?", "max_tokens": 8}\n')
    words = ["--policies", "off,eagle2:4x2", "--batch", "1", "--rounds", "1"]
    words += ["--workload", str(work), "--json", str(figures), "--widen", "small"]
    assert main(["bench", *words]) == 0
    assert "small: 7 layers, hidden size 264" in capsys.readouterr().err
    assert read_json(figures)["rows"][1]["tokens_per_step"] > 1.5


def test_profile_keeps_what_the_big_model_would_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ModelShape("small", 7, 264, 2, 2, 640, 640, context=512)
    monkeypatch.setitem(SHAPES, shape.name, shape)
    into, tables = tmp_path / "pair", tmp_path / "tables"
    words = ["--widen", "small", "--widen-into", str(into), "--keep", str(tables)]
    assert main(["profile", *words, "--max-running", "1", "--kv-tokens", "512"]) == 0
    assert "small on" in capsys.readouterr().out
    assert sorted(path.name.split("-")[0] for path in tables.iterdir()) == ["drafter", "target"]
    # What tables are known by is the big model's, whatever else a configuration says.
    assert load_target(into / "target", torch.float32, "cpu").shape == {
        "hidden_size": 264,
        "intermediate_size": 640,
        "num_hidden_layers": 7,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "vocab_size": 640,
        "has_mrope": False,
    }


@pytest.mark.parametrize(
    "words", [["--widen", "llama-3.1-8b", "--url", "http://127.0.0.1:1"], ["--widen-into", "there"]]
)
def test_options_that_do_not_fit_together_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 1
    assert "--widen" in capsys.readouterr().err
