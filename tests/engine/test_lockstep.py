"""Rows that accept different lengths keep tokens, positions and KV in step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from draft_doubles import KnowingDrafter, thicket
from engine_rig import Case, answers, make_engine
from small_models import VOCAB
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from smart_serve.engine.engine import Engine
from smart_serve.engine.sequence import Sequence
from smart_serve.messages import SamplingParams

BATCH, STEPS, TOKENS = 5, 200, 400


class Reference:
    """The stock model on a whole text at once."""

    def __init__(self, folder: Path) -> None:
        self.model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.inference_mode()
    def keys_and_values(self, tokens: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per layer [S, H_kv, D]."""
        cache = self.model(torch.tensor([tokens]), use_cache=True).past_key_values
        return [
            (layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1))
            for layer in cache.layers
        ]


def long_cases(folder: Path, cases: list[Case]) -> list[Case]:
    """The same prompts with answers of `TOKENS`, from plain decoding (tested elsewhere)."""
    engine = make_engine(folder, None, "off", kv_tokens=4096)
    sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    sequences = [engine.add(case.request(sampling), ()) for case in cases[:BATCH]]
    while engine.scheduler.has_work:
        engine.step()
    return [
        Case(case.token_ids, (), (), answer)
        for case, answer in zip(cases, answers(sequences), strict=False)
    ]


def texts_hold(sequences: list[Sequence], cases: list[Case]) -> bool:
    pairs = zip(answers(sequences), cases, strict=True)
    return all(text == case.answer[: len(text)] for text, case in pairs)


def is_in_step(engine: Engine, sequence: Sequence, reference: Reference) -> bool:
    assert sequence.num_computed == len(sequence.tokens) - 1
    positions = np.arange(sequence.num_computed)
    slots = torch.from_numpy(engine.cache.slots(sequence.blocks, positions))
    expected = reference.keys_and_values(sequence.tokens[:-1])
    for layer, (keys, values) in enumerate(expected):
        held_keys = engine.cache.keys[layer].flatten(0, 1)[slots]
        held_values = engine.cache.values[layer].flatten(0, 1)[slots]
        same = torch.allclose(held_keys, keys, atol=1e-4, rtol=1e-3)
        if not same or not torch.allclose(held_values, values, atol=1e-4, rtol=1e-3):
            return False
    return True


@pytest.fixture(scope="module")
def reference(small_llama: Path) -> Reference:
    return Reference(small_llama)


@pytest.fixture(scope="module")
def cases(small_llama: Path, llama_cases: list[Case]) -> list[Case]:
    return long_cases(small_llama, llama_cases)


def thicket_engine(folder: Path, cases: list[Case], seed: int) -> tuple[Engine, list[Sequence]]:
    # Mostly shallow trees, so that 200 steps fit into one answer.
    drafter = KnowingDrafter(thicket(np.random.default_rng(seed), VOCAB, max_nodes=6))
    engine = make_engine(folder, drafter, kv_tokens=4096)
    drafter.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(cases)}
    sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    return engine, [engine.add(case.request(sampling), ()) for case in cases]


def test_two_hundred_steps_of_random_acceptance_stay_in_step(
    small_llama: Path, cases: list[Case], reference: Reference
) -> None:
    engine, sequences = thicket_engine(small_llama, cases, seed=0)
    lengths: set[tuple[int, ...]] = set()
    for step in range(STEPS):
        emissions = engine.step()
        lengths.add(tuple(len(emission.token_ids) for emission in emissions))
        running = [sequence for sequence in sequences if sequence.finish_reason is None]
        if step % 40 == 7:
            assert all(is_in_step(engine, sequence, reference) for sequence in running)
        assert texts_hold(sequences, cases)
    assert len(lengths) > 50, "rows must accept different lengths"


def run_with_broken_moves(
    folder: Path, cases: list[Case], reference: Reference, shift: int
) -> bool:
    """Whether everything is still in step after 40 steps in which moves miss by `shift`."""
    engine, sequences = thicket_engine(folder, cases, seed=0)
    honest = engine.cache.commit
    engine.cache.commit = lambda slots, first, paths, lengths: honest(
        slots, first, (paths + shift).clamp(min=0), lengths
    )
    for _ in range(40):
        engine.step()
        if not texts_hold(sequences, cases):
            return False
    return all(is_in_step(engine, sequence, reference) for sequence in sequences)


def test_moves_that_miss_by_one_are_caught(
    small_llama: Path, cases: list[Case], reference: Reference
) -> None:
    """The control; with no shift the same run passes."""
    assert run_with_broken_moves(small_llama, cases, reference, 0)
    assert not run_with_broken_moves(small_llama, cases, reference, -1)
