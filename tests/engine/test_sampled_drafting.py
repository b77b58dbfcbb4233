"""Drawn trees through the engine: every rule keeps the target's law, `match` its very tokens."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from draft_doubles import KnowingDrafter, chain
from engine_rig import Case, answers, make_engine, random_feature_drafter, run_all

from smart_serve.config import rule_objection
from smart_serve.drafters.ngram import NgramDrafter
from smart_serve.errors import ClientError
from smart_serve.messages import GenerateRequest, SamplingParams
from smart_serve.verification.rules import SAMPLED_RULES

POLICIES = (
    "delayed:1,3,0",
    "delayed:3,0,2",
    "delayed:2,1,2",
    "distinct:2,2",
    "smart-drawn",
    "selector",
)
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


def test_match_keeps_the_seeds_tokens_when_another_replica_goes_on(
    small_llama: Path, llama_cases: list[Case]
) -> None:
    """With another drafter, under another policy, from any place."""
    cases = llama_cases[:3]
    params = [seeded(i) for i in range(len(cases))]
    alone = answers(run_all(make_engine(small_llama, None, "off"), cases, params))
    for kept, drafter, policy in (
        (1, NgramDrafter(None, max_tokens=2_000), "delayed:2,1,2"),
        (5, random_feature_drafter(small_llama), "smart-drawn"),
        (9, NgramDrafter(None, max_tokens=2_000), "eagle2"),
    ):
        engine = make_engine(small_llama, drafter, policy)
        resumed = [
            engine.add(GenerateRequest(
                request_id=f"r{i}", token_ids=(*case.token_ids, *answer[:kept]), num_resumed=kept,
                sampling=msgspec.structs.replace(chosen, max_tokens=len(answer) - kept),
            ))
            for i, (case, answer, chosen) in enumerate(zip(cases, alone, params, strict=True))
        ]  # fmt: skip
        while engine.scheduler.has_work:
            engine.step()
        assert answers(resumed) == [answer[kept:] for answer in alone]


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
