"""Rows that accept different lengths keep tokens, positions and KV in step, whatever comes and
goes: every now and then all that the cache holds is compared with a forward from scratch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from draft_doubles import KnowingDrafter, thicket
from engine_rig import Case, answers, make_engine
from small_models import VOCAB
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from smart_serve.engine import packing
from smart_serve.engine.engine import Engine
from smart_serve.engine.scheduler import Scheduler
from smart_serve.engine.sequence import Sequence
from smart_serve.messages import SamplingParams

STEPS, TOKENS = 500, 120
KV_TOKENS = 320
"""Too few for all that run, so that sequences are pre-empted."""


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
    sequences = [engine.add(case.request(sampling), ()) for case in cases]
    while engine.scheduler.has_work:
        engine.step()
    return [
        Case(case.token_ids, (), (), answer)
        for case, answer in zip(cases, answers(sequences), strict=True)
    ]


@pytest.fixture(scope="module")
def reference(small_llama: Path) -> Reference:
    return Reference(small_llama)


@pytest.fixture(scope="module")
def cases(small_llama: Path, llama_cases: list[Case]) -> list[Case]:
    return long_cases(small_llama, llama_cases)


@dataclass
class Traffic:
    """Requests that come, go on from an earlier answer, are aborted and pre-empted, at random."""

    engine: Engine
    drafter: KnowingDrafter
    cases: list[Case]
    rng: np.random.Generator
    sequences: list[Sequence] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    """What each sequence's tokens must turn out to be the beginning of."""
    lengths: set[tuple[int, ...]] = field(default_factory=set)
    """Tokens that each sequence of a step emitted."""

    @staticmethod
    def start(folder: Path, cases: list[Case]) -> Traffic:
        rng = np.random.default_rng(0)
        drafter = KnowingDrafter(thicket(rng, VOCAB, max_nodes=6))
        engine = make_engine(folder, drafter, kv_tokens=KV_TOKENS, prefill_chunk_tokens=20)
        return Traffic(engine, drafter, cases, rng)

    def step(self) -> None:
        if self.rng.random() < 0.2 and len(self.running) < 8:
            self._add()
        if self.rng.random() < 0.03 and self.running:
            self.engine.abort(self.rng.choice(self.running))
        emissions = self.engine.step()
        self.lengths.add(tuple(len(emission.token_ids) for emission in emissions))
        held = [s.blocks for s in self.engine.scheduler.running]
        self.engine.scheduler.pool.check(held)

    @property
    def running(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if sequence.finish_reason is None]

    def texts_hold(self) -> bool:
        pairs = zip(self.sequences, self.texts, strict=True)
        return all(sequence.tokens == text[: len(sequence.tokens)] for sequence, text in pairs)

    def is_in_step(self, reference: Reference) -> bool:
        """Whether the committed keys and values of all that run are the stock model's."""
        return all(self._holds(s, reference) for s in self.running if s.num_computed > 0)

    def _add(self) -> None:
        case = self.cases[self.rng.integers(len(self.cases))]
        text = [*case.token_ids, *case.answer]
        num_prompt = len(case.token_ids) + int(self.rng.integers(TOKENS // 2))
        sampling = SamplingParams(max_tokens=int(self.rng.integers(2, 60)), ignore_eos=True)
        prompt = Case(tuple(text[:num_prompt]), (), ())
        sequence = self.engine.add(prompt.request(sampling))
        self.drafter.texts[sequence.id] = text
        self.sequences.append(sequence)
        self.texts.append(text)

    def _holds(self, sequence: Sequence, reference: Reference) -> bool:
        cache, positions = self.engine.cache, np.arange(sequence.num_computed)
        block, offset = np.divmod(positions, cache.block_tokens)
        slots = np.array(sequence.blocks)[block] * cache.block_tokens + offset
        expected = reference.keys_and_values(sequence.tokens[: sequence.num_computed])
        return all(
            torch.allclose(held.flatten(0, 1)[slots], right, atol=1e-4, rtol=1e-3)
            for layer, both in enumerate(expected)
            for held, right in zip((cache.keys[layer], cache.values[layer]), both, strict=True)
        )


def test_five_hundred_steps_of_random_traffic_stay_in_step(
    small_llama: Path, cases: list[Case], reference: Reference
) -> None:
    traffic = Traffic.start(small_llama, cases)
    for step in range(STEPS):
        traffic.step()
        assert traffic.texts_hold()
        if step % 25 == 7:
            assert traffic.is_in_step(reference)
    tallies = [sequence.tally for sequence in traffic.sequences]
    assert len(traffic.lengths) > 50, "rows must accept different lengths"
    assert sum(tally.accepted for tally in tallies) > 200
    assert sum(tally.pre_emptions for tally in tallies) > 5
    assert sum(tally.cached_tokens for tally in tallies) > 500
    assert {s.finish_reason for s in traffic.sequences} >= {"length", "cancelled"}


def no_bug(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """The same run passes without one."""


def moves_miss_by_one(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    honest = engine.cache.commit
    engine.cache.commit = lambda slots, first, paths, lengths: honest(
        slots, first, (paths - 1).clamp(min=0), lengths
    )


def positions_miss_by_one(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """Of rows beyond the first 64, so that it shows late only."""
    honest = packing._positions

    def late(sequences: object, indices: np.ndarray, first_rows: np.ndarray) -> np.ndarray:
        return honest(sequences, indices + (indices >= 64), first_rows)

    monkeypatch.setattr(packing, "_positions", late)


def blocks_are_published_a_token_early(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    honest = Scheduler.commit

    def hasty(self: Scheduler, sequence: Sequence) -> None:
        sequence.num_computed += 1
        honest(self, sequence)
        sequence.num_computed -= 1

    monkeypatch.setattr(Scheduler, "commit", hasty)


BUGS = (moves_miss_by_one, positions_miss_by_one, blocks_are_published_a_token_early)


@pytest.mark.parametrize("bug", [no_bug, *BUGS])
def test_a_planted_miss_by_one_is_caught(
    small_llama: Path,
    cases: list[Case],
    reference: Reference,
    bug: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traffic = Traffic.start(small_llama, cases)
    bug(monkeypatch, traffic.engine)
    for step in range(150):
        traffic.step()
        is_right = traffic.texts_hold() and (step % 10 or traffic.is_in_step(reference))
        if not is_right:
            break
    assert bool(is_right) == (bug is no_bug)
