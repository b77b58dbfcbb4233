"""Drawn trees through the engine: every rule keeps the target's law, `match` its very tokens."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from draft_doubles import KnowingDrafter, chain
from engine_rig import Case, answers, make_engine, random_feature_drafter, run_all
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from smart_serve.config import rule_objection
from smart_serve.drafters.ngram import NgramDrafter
from smart_serve.drafters.protocol import Drafter
from smart_serve.engine import sampled
from smart_serve.errors import ClientError
from smart_serve.messages import GenerateRequest, SamplingParams
from smart_serve.verification.rules import SAMPLED_RULES

POLICIES = ("delayed:1,3,0", "delayed:3,0,2", "delayed:2,1,2", "distinct:2,2")
LEGAL = [
    (policy, rule)
    for policy in POLICIES
    for rule in SAMPLED_RULES
    if rule_objection(rule, policy) is None
]


def seeded(index: int, **changes: object) -> SamplingParams:
    fields: dict[str, object] = {
        "max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 50 + index, "ignore_eos": True
    }  # fmt: skip
    return SamplingParams(**(fields | changes))


@pytest.mark.parametrize("policy", POLICIES)
def test_match_keeps_the_seeds_tokens_on_drawn_trees(
    small_llama: Path, llama_cases: list[Case], policy: str
) -> None:
    plain = make_engine(small_llama, None, "off")
    params = [seeded(i) for i in range(len(llama_cases))]
    alone = answers(run_all(plain, llama_cases, params))
    engine = make_engine(small_llama, random_feature_drafter(small_llama), policy)
    sequences = run_all(engine, llama_cases, params, every=2)
    assert answers(sequences) == alone
    assert sum(sequence.tally.drafted for sequence in sequences) > 50


@pytest.mark.parametrize(("policy", "rule"), LEGAL)
def test_greedy_answers_are_the_models_own_under_every_rule(
    small_llama: Path, llama_cases: list[Case], policy: str, rule: str
) -> None:
    engine = make_engine(small_llama, random_feature_drafter(small_llama), policy)
    params = SamplingParams(max_tokens=12, verification=rule)
    expected = [case.answer[:12] for case in llama_cases]
    assert answers(run_all(engine, llama_cases, params)) == expected


def test_requests_of_all_rules_share_a_batch_and_do_not_depend_on_it(
    small_llama: Path, llama_cases: list[Case]
) -> None:
    rules = ["traversal", "match", "specinfer", "spectr", "naive", "traversal"]
    params = [seeded(i, verification=rule) for i, rule in enumerate(rules)]
    policy = "delayed:2,1,2"
    engine = make_engine(small_llama, random_feature_drafter(small_llama), policy)
    together = answers(run_all(engine, llama_cases, params))
    for case, chosen, answer in zip(llama_cases, params, together, strict=True):
        engine = make_engine(small_llama, random_feature_drafter(small_llama), policy)
        assert answers(run_all(engine, [case], [chosen])) == [answer]


def test_a_tree_without_room_is_left_out_whole(small_llama: Path, llama_cases: list[Case]) -> None:
    """Whether it fits is asked for the largest that it could have been."""
    engine = make_engine(
        small_llama, random_feature_drafter(small_llama), "delayed:3,0,2", kv_tokens=96
    )
    params = [seeded(i, verification="traversal", max_tokens=20) for i in range(len(llama_cases))]
    sequences = run_all(engine, llama_cases, params)
    assert all(sequence.num_generated == 20 for sequence in sequences)
    sizes = [size for sequence in sequences for size in sequence.tally.tree_sizes]
    assert 0 in sizes[1:]
    assert max(sizes) > 3


@pytest.mark.parametrize(
    ("engine_policy", "policy", "rule", "words"),
    [
        ("smart", None, "traversal", "takes the likeliest"),
        ("delayed:2,1,1", "eagle2", "specinfer", "takes the likeliest"),
        ("delayed:2,1,1", None, "block", "for chains"),
        ("off", "distinct:2,2", "spectr", "independent draws"),
    ],
)
def test_illegal_pairs_are_refused_with_a_reason(
    small_llama: Path, engine_policy: str, policy: str | None, rule: str, words: str
) -> None:
    engine = make_engine(small_llama, None, engine_policy)

    def ask() -> None:
        sampling = SamplingParams(policy=policy, verification=rule)
        engine.add(GenerateRequest(request_id="r", token_ids=(3, 4), sampling=sampling))

    with pytest.raises(ClientError, match=words):
        ask()


def test_drawn_trees_without_their_laws_cost_a_plain_step(
    small_llama: Path, llama_cases: list[Case], caplog: pytest.LogCaptureFixture
) -> None:
    drafter = KnowingDrafter(chain(3))
    engine = make_engine(small_llama, drafter, "delayed:1,3,0")
    drafter.texts = {i: [*c.token_ids, *c.answer] for i, c in enumerate(llama_cases)}
    sequences = run_all(engine, llama_cases, SamplingParams(max_tokens=8))
    assert answers(sequences) == [case.answer[:8] for case in llama_cases]
    assert sum(sequence.tally.accepted for sequence in sequences) == 0
    assert "without the distributions" in caplog.text


# ---- the law, end to end

VOCAB = 7
PROMPT = (3, 5, 1, 3, 5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        initializer_range=0.4, bos_token_id=0, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(2)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def exact_law(folder: Path, params: SamplingParams) -> np.ndarray:
    """Joint probability of the first three tokens, from transformers' logits. [V, V, V]"""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

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


def drafter_of(kind: str, folder: Path) -> Drafter:
    if kind == "ngram":
        return NgramDrafter(None, max_tokens=50_000)
    return random_feature_drafter(folder)


def count_texts(
    folder: Path, kind: str, policy: str, params: SamplingParams, samples: int, batch: int
) -> tuple[np.ndarray, int]:
    """How often each three first tokens came, and how many drafted tokens were accepted."""
    engine = make_engine(folder, drafter_of(kind, folder), policy, max_running=batch)
    case = Case(PROMPT, (), ())
    counts, accepted = np.zeros((VOCAB,) * 3), 0
    for first in range(0, samples, batch):
        chosen = [msgspec.structs.replace(params, seed=first + i) for i in range(batch)]
        for sequence in run_all(engine, [case] * batch, chosen):
            counts[tuple(sequence.tokens[sequence.num_prompt :][:3])] += 1
            accepted += sequence.tally.accepted
    return counts, accepted


PLAIN = SamplingParams(max_tokens=5, temperature=1.0)
SETTINGS = {
    "plain": PLAIN,
    "cut": msgspec.structs.replace(PLAIN, temperature=0.7, top_p=0.9),
    "penalised": msgspec.structs.replace(PLAIN, repetition_penalty=1.5, frequency_penalty=0.8),
}


@pytest.mark.parametrize(("policy", "rule"), [("delayed:2,1,1", "traversal")])
def test_the_text_follows_the_model(tiny: Path, policy: str, rule: str) -> None:
    params = msgspec.structs.replace(SETTINGS["penalised"], verification=rule)
    counts, accepted = count_texts(tiny, "feature", policy, params, 1_600, 64)
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
    counts, _ = count_texts(tiny, "feature", "delayed:2,1,1", params, 1_600, 64)
    assert chi_square_p_value(counts, counts.sum() * exact_law(tiny, params)) < 1e-5


SLOW = [
    (kind, policy, rule, setting)
    for policy, rule in LEGAL
    for kind in ("feature", "ngram")
    for setting in SETTINGS
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "policy", "rule", "setting"), SLOW)
def test_the_text_follows_the_model_in_many_samples(
    tiny: Path, kind: str, policy: str, rule: str, setting: str
) -> None:
    """20,000 samples each. Together these fail a right engine with probability 1e-3 at most."""
    params = msgspec.structs.replace(SETTINGS[setting], verification=rule)
    counts, accepted = count_texts(tiny, kind, policy, params, 20_000, 16)
    assert accepted > 500
    level = 1e-3 / len(SLOW)
    assert chi_square_p_value(counts, counts.sum() * exact_law(tiny, params)) > level
