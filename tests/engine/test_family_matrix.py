"""Every family x drafter x policy: greedy tokens are those of transformers' own `generate`.

The README's table of what works together is read against these tests.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import published_drafters as published
import pytest
import torch
from engine_rig import Case, answers, make_cases, make_engine, run_all
from qwen_cases import make_qwen_cases
from safetensors.torch import load_file, save_file
from small_models import IMAGE_TOKEN, small_text_config
from transformers import LlamaConfig, LlamaForCausalLM

from smart_serve.config import EngineConfig
from smart_serve.drafters.load import load_drafter
from smart_serve.drafters.protocol import Drafter
from smart_serve.engine.sequence import Sequence
from smart_serve.messages import SamplingParams

FAMILIES = ("llama", "llava", "qwen2_vl")
DRAFTERS = ("ngram", "draft_model", "draft_model_self", "eagle", "msd", "eagle3")
"""`draft_model`: a smaller Llama; `draft_model_self`: the target itself, pictures and all."""
POLICIES = (
    *("off", "chain:3", "adaptive-chain", "static", "eagle2"),
    *("eagle2:6x3", "smart-paper", "smart"),
)
DRAFT_ALWAYS = ("chain:3", "static", "eagle2", "eagle2:6x3", "smart-paper")
"""The others stop when a drafter is as bad as these untrained ones."""
NUM_CASES = 24
EOS = 1
FEW_TOKENS = 96
"""KV tokens that hold any one request, and not two long ones."""


def pairs() -> list[tuple[str, str]]:
    """EAGLE-1/2's drafters know no pictures; MSD's are EAGLE's shape, for models that see."""
    unfit = {("llama", "msd"), ("llava", "eagle"), ("qwen2_vl", "eagle")}
    return [(f, d) for f in FAMILIES for d in DRAFTERS if (f, d) not in unfit]


@dataclass(frozen=True)
class Rig:
    """A target, what `generate` says, and a drafter that was read from its published layout."""

    folder: Path
    cases: list[Case]
    drafter: Drafter


@pytest.fixture(scope="module")
def all_cases(small_llama: Path, small_llava: Path, small_qwen2_vl: Path) -> dict[str, list[Case]]:
    """24 prompts each, of different lengths; with 0 to 3 pictures where the family sees."""
    return {
        "llama": make_cases(small_llama, NUM_CASES, pictures=0),
        "llava": make_cases(small_llava, NUM_CASES, pictures=3),
        "qwen2_vl": make_qwen_cases(small_qwen2_vl, NUM_CASES),
    }


@pytest.fixture(scope="module", params=pairs(), ids="-".join)
def rig(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    all_cases: dict[str, list[Case]],
) -> Rig:
    family, kind = request.param
    folder: Path = request.getfixturevalue(f"small_{family}")
    name = drafter_name(kind, folder, tmp_path_factory.mktemp(kind))
    config = EngineConfig(block_tokens=4, kv_tokens=4096)
    return Rig(folder, all_cases[family], load_drafter(name, folder, config))


def drafter_name(kind: str, target: Path, folder: Path) -> str:
    """What a user would write; the checkpoint is made first."""
    text = small_text_config()
    if kind == "ngram":
        return "ngram"
    if kind == "draft_model_self":
        return f"draft_model:{target}"
    if kind == "draft_model":
        small = LlamaConfig(**{**text.to_dict(), "hidden_size": 16, "num_hidden_layers": 1})
        with torch.random.fork_rng():
            torch.manual_seed(4)
            LlamaForCausalLM(small).save_pretrained(folder)
        return f"draft_model:{folder}"
    if kind == "eagle3":
        config = published.config_of(text, draft_vocab_size=published.DRAFT_VOCAB)
        return str(published.write(folder, config, published.eagle3_tensors(text), "safetensors"))
    tensors = published.eagle_tensors(text, bias=kind == "msd")
    return str(published.write(folder, published.config_of(text), tensors, "bin"))


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of pre-empted sequences."""
    seen: list[int] = []
    restart = Sequence.restart

    def count(sequence: Sequence) -> None:
        seen.append(sequence.id)
        restart(sequence)

    monkeypatch.setattr(Sequence, "restart", count)
    return seen


def check(rig: Rig, policy: str, cases: list[Case], every: int = 0, **options: object) -> int:
    """Run all; how many prompt tokens were found in the cache."""
    engine = make_engine(rig.folder, rig.drafter, policy, **options)
    sequences = run_all(engine, cases, every=every)
    assert answers(sequences) == [case.answer for case in cases]
    drafted = sum(sequence.tally.drafted for sequence in sequences)
    # A few prompts alone may hold nothing for a lookup to find.
    if policy in DRAFT_ALWAYS and len(cases) >= NUM_CASES:
        assert drafted > 0
    assert drafted == 0 or policy != "off"
    return sum(sequence.stats().cached_tokens for sequence in sequences)


@pytest.mark.parametrize("policy", POLICIES)
def test_tokens_are_those_of_generate(rig: Rig, policy: str, restarts: list[int]) -> None:
    """Alone, in one batch with prompts that come again, and staggered with so few KV blocks that
    sequences are pre-empted."""
    alone = rig.cases[::8]
    assert check(rig, policy, alone, max_running=1, prefix_reuse=False) == 0
    assert check(rig, policy, [*rig.cases, *rig.cases[:6]], max_running=24) > 0
    assert not restarts
    check(rig, policy, rig.cases, every=1, max_running=12, kv_tokens=FEW_TOKENS)
    assert restarts


@pytest.mark.slow
@pytest.mark.parametrize("few_blocks", [False, True])
@pytest.mark.parametrize("prefix_reuse", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_in_every_combination(rig: Rig, policy: str, prefix_reuse: bool, few_blocks: bool) -> None:
    kv_tokens = FEW_TOKENS if few_blocks else 4096
    options = {"prefix_reuse": prefix_reuse, "kv_tokens": kv_tokens}
    check(rig, policy, rig.cases, max_running=1, **options)
    check(rig, policy, rig.cases, max_running=24, **options)
    check(rig, policy, rig.cases, every=2, max_running=8, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_target_that_drafts_for_itself_is_never_wrong(
    family: str, request: pytest.FixtureRequest, all_cases: dict[str, list[Case]]
) -> None:
    """Tokens per step = depth + 1: every node of a greedy path is accepted, pictures or not."""
    folder: Path = request.getfixturevalue(f"small_{family}")
    config = EngineConfig(block_tokens=4, kv_tokens=4096)
    engine = make_engine(folder, load_drafter(f"draft_model:{folder}", folder, config), "chain:3")
    sampling = SamplingParams(max_tokens=1 + 4 * 5, ignore_eos=True)
    whole = 0
    for sequence in run_all(engine, all_cases[family], sampling):
        assert sequence.tally.accepted == sequence.tally.drafted > 0
        if EOS not in sequence.tokens:  # Nothing is drafted beyond what ends an answer.
            # The first token is prefill's.
            assert sequence.tally.target_steps == 1 + 5
            whole += 1
    assert whole >= NUM_CASES // 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_feature_drafter_of_the_targets_own_layer_is_never_wrong(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A target whose attention is silenced and whose second layer passes all through is one layer
    of a token's embedding. A drafter of that layer, with an `fc` that takes the embedding alone,
    predicts its hidden states but for the norm's scale, which no arg-max sees."""
    source: Path = request.getfixturevalue(f"small_{family}")
    target = shutil.copytree(source, tmp_path / "target")
    weights = silence(load_file(target / "model.safetensors"))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    drafter = write_own_layer(tmp_path / "drafter", weights)
    config = EngineConfig(block_tokens=4, kv_tokens=4096)
    engine = make_engine(target, load_drafter(str(drafter), target, config), "chain:3")
    if family == "qwen2_vl":
        cases = make_qwen_cases(target, 6)
    else:
        cases = make_cases(target, 6, pictures=0 if family == "llama" else 2)
    sequences = run_all(engine, cases, SamplingParams(max_tokens=1 + 4 * 5, ignore_eos=True))
    assert answers(sequences)
    for sequence in sequences:
        assert sequence.tally.accepted == sequence.tally.drafted > 0
    whole = [sequence for sequence in sequences if EOS not in sequence.tokens]
    assert whole
    assert {sequence.tally.target_steps for sequence in whole} == {1 + 5}


def silence(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for name, tensor in weights.items():
        is_last = ".layers.1." in name and "visual" not in name and "vision" not in name
        if name.endswith("self_attn.o_proj.weight") or (is_last and "down_proj" in name):
            tensor.zero_()
        if name.endswith(("model.norm.weight", "language_model.norm.weight")):
            tensor.fill_(1.0)
        if name.endswith("lm_head.weight"):
            tensor[IMAGE_TOKEN].zero_()  # As no trained model does, it never says this token.
        if name.endswith("embed_tokens.weight"):
            tensor[small_text_config().pad_token_id] = 0.5  # Zeros would make every token tie.
    return weights


def write_own_layer(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    text = small_text_config()
    tensors = {name: tensor.float() for name, tensor in published.eagle_tensors(text).items()}
    own = {name.rpartition("layers.0.")[2]: t for name, t in weights.items() if "layers.0." in name}
    for name in tensors:
        if "mlp" in name or "norm" in name or "o_proj" in name:
            tensors[name] = own[name.removeprefix("layers.0.")].clone()
    embeds = next(t for name, t in weights.items() if name.endswith("embed_tokens.weight"))
    tensors["embed_tokens.weight"] = embeds.clone()
    eye = torch.eye(text.hidden_size)
    tensors["fc.weight"] = torch.cat((eye, torch.zeros_like(eye)), dim=1)
    config = published.config_of(text, rms_norm_eps=text.rms_norm_eps)
    return published.write(folder, config, tensors, "safetensors")


def test_the_readme_tells_of_these_and_no_others() -> None:
    lines = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    header = next(row for row in cells if row[:2] == ["family", "drafter"])
    assert tuple(header[2:]) == POLICIES
    told = [tuple(row[:2]) for row in cells if row[0] in FAMILIES and row[2:] == ["✓"] * 8]
    assert told == pairs()
