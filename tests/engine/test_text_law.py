"""The law of the text, end to end: answers of `LLM` against exact probabilities from transformers.

Seeds are fixed, so a test that passes once passes always.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import published_drafters as published
import pytest
import torch
from engine_rig import FLAT_COSTS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from smart_serve.config import VERIFICATION_RULES, SpeculationConfig, rule_objection
from smart_serve.engine import sampled
from smart_serve.llm import LLM
from smart_serve.messages import SamplingParams
from smart_serve.speculation.controller import SpeculationController
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.prices import Prices
from smart_serve.speculation.step_observation import StepObservation

VOCAB = 7
PROMPT = tuple(np.random.default_rng(6).integers(0, VOCAB, 40).tolist())
"""Long enough for prompt lookup to find whatever comes."""
MODEL = "draft_model:FOLDER/draft"
CHUNK = 160
"""Requests of one `generate` call."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random target of seven words, with another such model and random EAGLE and EAGLE-3
    checkpoints beside it as drafters."""
    folder = tmp_path_factory.mktemp("tiny")
    words = {f"w{token}": token for token in range(VOCAB)}
    for name, seed in (("target", 2), ("draft", 3)):
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
            initializer_range=0.4, bos_token_id=0, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(folder / name)
        Tokenizer(WordLevel(words, unk_token="w0")).save(str(folder / name / "tokenizer.json"))
    tensors = published.eagle_tensors(config, bias=True)
    published.write(folder / "eagle", published.config_of(config), tensors, "bin")
    reduced = published.config_of(config, draft_vocab_size=VOCAB - 2)
    tensors = published.eagle3_tensors(config, VOCAB - 2)
    published.write(folder / "eagle3", reduced, tensors, "safetensors")
    return folder


def exact_law(folder: Path, params: SamplingParams) -> np.ndarray:
    """Joint probability of the first three tokens, from transformers' logits. [V, V, V]"""
    model = AutoModelForCausalLM.from_pretrained(folder / "target").eval()

    def after(answer: tuple[int, ...]) -> np.ndarray:
        with torch.inference_mode():
            logits = model(torch.tensor([[*PROMPT, *answer]])).logits[0, -1].double().numpy()
        for token in {*PROMPT, *answer}:
            r = params.repetition_penalty
            logits[token] = logits[token] / r if logits[token] > 0 else logits[token] * r
        for token in answer:
            logits[token] -= params.frequency_penalty
        weights = np.exp((logits - logits.max()) / params.temperature)
        law = weights / weights.sum()
        order = np.argsort(-law, kind="stable")
        before = np.cumsum(law[order]) - law[order]
        law[order[before >= params.top_p]] = 0.0
        return law / law.sum()

    first = after(())
    seconds = np.stack([after((a,)) for a in range(VOCAB)])
    thirds = np.stack([[after((a, b)) for b in range(VOCAB)] for a in range(VOCAB)])
    return first[:, None, None] * seconds[:, :, None] * thirds


def chi_square_p_value(counts: np.ndarray, expected: np.ndarray) -> float:
    """Cells that expect fewer than 5 are one."""
    rare = expected < 5.0
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    is_cell = expected > 0
    assert counts[~is_cell].sum() == 0
    statistic = ((counts - expected)[is_cell] ** 2 / expected[is_cell]).sum()
    return float(torch.special.gammaincc(
        torch.tensor((is_cell.sum() - 1) / 2, dtype=torch.float64), torch.tensor(statistic / 2)
    ))  # fmt: skip


class Decreed(Prices):
    """They stay what they are said to be: of a target so slow that drafts always pay."""

    def observe(self, seen: StepObservation) -> None:
        pass


def decreed(config: SpeculationConfig) -> SpeculationController:
    controller = SpeculationController(config, FLAT_COSTS, Curve((1.0,), (0.1,)))
    controller.prices = Decreed(FLAT_COSTS, Curve((1.0,), (0.1,)))
    return controller


def count_texts(
    folder: Path, drafter: str, policy: str, params: SamplingParams, samples: int, batch: int
) -> tuple[np.ndarray, int]:
    """How often each three first tokens came, and how many drafted tokens were accepted."""
    named = drafter.replace("FOLDER", str(folder))
    llm = LLM(folder / "target", named, policy, kv_tokens=4096, max_running=batch)
    llm.engine.set_controller(decreed(llm.engine.config.speculation))
    counts, accepted = np.zeros((VOCAB,) * 3), 0
    for first in range(0, samples, CHUNK):
        seeds = range(first, min(first + CHUNK, samples))
        chosen = [msgspec.structs.replace(params, seed=seed) for seed in seeds]
        for answer in llm.generate([{"prompt_token_ids": PROMPT}] * len(chosen), chosen):
            counts[answer.token_ids[:3]] += 1
            accepted += answer.stats.accepted_tokens
    return counts, accepted


PLAIN = SamplingParams(max_tokens=5, temperature=1.0)
SETTINGS = {
    "plain": PLAIN,
    "cut": msgspec.structs.replace(PLAIN, temperature=0.7, top_p=0.9),
    "penalised": msgspec.structs.replace(PLAIN, repetition_penalty=1.5, frequency_penalty=0.8),
}


@pytest.mark.parametrize(("policy", "drafter"), [("delayed:2,1,1", MODEL), ("smart-drawn", MODEL)])
def test_the_text_follows_the_model(tiny: Path, policy: str, drafter: str) -> None:
    params = msgspec.structs.replace(SETTINGS["penalised"], verification="traversal")
    counts, accepted = count_texts(tiny, drafter, policy, params, 1_600, 64)
    assert accepted > 100
    assert chi_square_p_value(counts, counts.sum() * exact_law(tiny, params)) > 1e-5
    # The control: the same counts do not pass for the law without penalties.
    assert chi_square_p_value(counts, counts.sum() * exact_law(tiny, PLAIN)) < 1e-5


def test_a_rule_told_another_temperature_is_caught(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a bonus token, and all else that a rule draws, without the temperature."""
    real = sampled.target_probs
    monkeypatch.setattr(
        sampled, "target_probs", lambda logits, t, *rest: real(logits, torch.ones_like(t), *rest)
    )
    params = msgspec.structs.replace(PLAIN, temperature=0.6, verification="traversal")
    counts, _ = count_texts(tiny, MODEL, "delayed:2,1,1", params, 1_600, 64)
    assert chi_square_p_value(counts, counts.sum() * exact_law(tiny, params)) < 1e-5


DRAFTERS = (MODEL, "ngram", "FOLDER/eagle", "FOLDER/eagle3")
PAIRS = [
    (policy, rule)
    for policy in ("delayed:1,2,0", "delayed:3,0,2", "delayed:2,1,1", "distinct:2,2", "smart-drawn")
    for rule in VERIFICATION_RULES
    if rule_objection(rule, policy) is None
] + [("eagle2", "match")]
# Every rule on every kind of tree it may verify; drafters and settings in turn.
SLOW = [
    (policy, rule, DRAFTERS[i % 4], list(SETTINGS)[i % 3]) for i, (policy, rule) in enumerate(PAIRS)
]


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "rule", "drafter", "setting"), SLOW)
def test_the_text_follows_the_model_in_many_samples(
    tiny: Path, policy: str, rule: str, drafter: str, setting: str
) -> None:
    """20,000 samples each. Together these fail a right engine with probability 1e-3 at most."""
    params = msgspec.structs.replace(SETTINGS[setting], verification=rule)
    counts, accepted = count_texts(tiny, drafter, policy, params, 20_000, 16)
    assert accepted > 500
    level = 1e-3 / len(SLOW)
    assert chi_square_p_value(counts, counts.sum() * exact_law(tiny, params)) > level
