"""Whatever drafts, under whatever policy: the tokens are those of plain decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import published_drafters as published
import pytest
import torch
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from smart_serve.drafters.protocol import DraftBatch, Proposal
from smart_serve.llm import LLM, Completion
from smart_serve.messages import SamplingParams
from smart_serve.models.folders import resolve_model

POLICIES = ("smart", "eagle2", "chain:3")
KINDS = ("ngram", "self", "text-model", "bundled", "msd-bin", "eagle3-bin")
TARGET = resolve_model("bundled")
PROMPTS: list[dict[str, Any]] = [
    {"prompt": "What is in the picture?", "images": [str(TARGET.parent / "example.png")]},
    {"prompt": "Count from one to ten."},
]
LONG = 24


def make_llm(drafter: str | None) -> LLM:
    return LLM(drafter=drafter, max_running=2, kv_tokens=2048)


def answers(llm: LLM, policy: str) -> list[Completion]:
    sampling = SamplingParams(max_tokens=LONG, temperature=0.0, ignore_eos=True, policy=policy)
    return llm.generate(PROMPTS, sampling)


@pytest.fixture(scope="module")
def plain() -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers(make_llm(None), "off")]


@pytest.fixture(scope="module", params=KINDS)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return make_llm(name_of(request.param, tmp_path_factory.mktemp(request.param)))


def name_of(kind: str, folder: Path) -> str:
    """What a user would write for a drafter of this kind."""
    text = AutoConfig.from_pretrained(TARGET).text_config
    match kind:
        case "self":
            return "draft_model:bundled"
        case "text-model":
            small = LlamaConfig(
                vocab_size=text.vocab_size,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=1,
                num_attention_heads=2,
            )
            with torch.random.fork_rng():
                torch.manual_seed(0)
                LlamaForCausalLM(small).save_pretrained(folder)
            return f"draft_model:{folder}"
        case "msd-bin":
            tensors = published.eagle_tensors(text, bias=True)
            return str(published.write(folder, published.config_of(text), tensors, "bin"))
        case "eagle3-bin":
            config = published.config_of(text, draft_vocab_size=published.DRAFT_VOCAB)
            return str(published.write(folder, config, published.eagle3_tensors(text), "bin"))
        case _:
            return kind


@pytest.mark.parametrize("policy", POLICIES)
def test_tokens_are_those_of_plain_decoding(
    llm: LLM, plain: list[tuple[int, ...]], policy: str
) -> None:
    got = answers(llm, policy)
    assert [answer.token_ids for answer in got] == plain
    kind = llm.engine.drafting.drafter.info.kind
    if policy != "smart" and kind != "ngram":
        assert all(answer.stats.drafted_tokens > 0 for answer in got)


@pytest.mark.parametrize(("policy", "depth"), [("chain:3", 3), ("eagle2", 6)])
def test_the_target_drafting_for_itself_is_right_at_every_depth(policy: str, depth: int) -> None:
    """Text and pictures: the drafter's cache, positions and embeddings are the target's own."""
    for answer in answers(make_llm("draft_model:bundled"), policy):
        # One token comes from prefill; the others in steps of depth + 1.
        assert answer.stats.target_steps == 1 + -(-(LONG - 1) // (depth + 1))


def test_prompt_lookup_is_right_where_an_answer_repeats_the_prompt() -> None:
    llm = make_llm("ngram")
    sampling = SamplingParams(max_tokens=LONG, temperature=0.0, ignore_eos=True, policy="off")
    first = llm.generate(PROMPTS[1:], sampling)[0]
    again = [*llm.prompts.build_raw(PROMPTS[1]["prompt"], []).token_ids, *first.token_ids]
    drafting = SamplingParams(max_tokens=LONG, temperature=0.0, ignore_eos=True, policy="eagle2")
    accepted = llm.generate([{"prompt_token_ids": again}], drafting)[0].stats.accepted_tokens
    assert accepted > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_a_checkpoint_that_is_not_numbers_costs_only_its_drafts(
    plain: list[tuple[int, ...]], tmp_path: Path, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = AutoConfig.from_pretrained(TARGET).text_config
    tensors = published.eagle_tensors(text)
    tensors["fc.weight"].fill_(torch.nan)
    folder = published.write(tmp_path / "d", published.config_of(text), tensors, "bin")
    llm = make_llm(str(folder))
    assert [answer.token_ids for answer in answers(llm, policy)] == plain
    assert llm.engine.drafting.drafter.free_blocks == llm.engine.drafting.drafter.total_blocks
    if policy != "smart":
        assert "answer is refused" in caplog.text


@pytest.mark.parametrize("shift", [-1_000, 1_000])
def test_drafts_outside_the_vocabulary_are_refused(
    plain: list[tuple[int, ...]], shift: int, caplog: pytest.LogCaptureFixture
) -> None:
    llm = make_llm("bundled")
    network = llm.engine.drafting.drafter._network
    network.target_ids = np.arange(640) + shift
    assert [answer.token_ids for answer in answers(llm, "chain:1")] == plain
    assert "token outside the vocabulary" in caplog.text


def test_eagle3_is_fed_what_enters_the_captured_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make_llm(name_of("eagle3-bin", tmp_path))
    drafter, sent = llm.engine.drafting.drafter, []
    real = drafter.propose

    def recorded(batch: DraftBatch) -> Proposal:
        sent.extend(batch.inputs)
        return real(batch)

    monkeypatch.setattr(drafter, "propose", recorded)
    sampling = SamplingParams(max_tokens=LONG, temperature=0.0, ignore_eos=True, policy="eagle2")
    prompt = llm.prompts.build_raw(PROMPTS[1]["prompt"], []).token_ids
    answer = llm.generate([{"prompt_token_ids": prompt}], sampling)[0]
    tokens = [*prompt, *answer.token_ids]
    fed = torch.cat([item.vectors for item in sent])
    assert [token for item in sent for token in item.token_ids] == tokens[1 : len(fed) + 1]
    model = LlavaForConditionalGeneration.from_pretrained(TARGET, dtype=torch.float32).eval()
    with torch.inference_mode():
        states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    # hidden_states[i] enters layer i.
    expected = torch.cat([states[i][0, : len(fed)] for i in (2, 3, 3)], dim=-1)
    assert drafter.info.capture_layers == (2, 3, 3)
    assert torch.allclose(fed, expected, atol=1e-3)
    assert not torch.allclose(fed, torch.cat([states[i][0, : len(fed)] for i in (3, 4, 4)], -1))
