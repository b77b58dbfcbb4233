"""Captured forwards, without a GPU: a capture here is a forward that runs again over fixed memory.

The kernels are interpreted, so everything but CUDA's own recording is what runs on a GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_rig import Case, answers, make_cases, make_engine, random_feature_drafter, run_all
from recorder import Recorder
from transformers import AutoConfig, LlamaForCausalLM

from smart_serve.engine.engine import Engine
from smart_serve.engine.forward import EagerForward
from smart_serve.engine.graphs import GraphedForward
from smart_serve.messages import SamplingParams
from smart_serve.models import decoder
from smart_serve.models.attention_step import AttentionStep
from smart_serve.models.qwen2_vl import Qwen2VLForCausalLM
from smart_serve.models.target import TargetModel
from smart_serve.paging import buckets
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.rows import Rows, causal_rows

BUCKETS = (2, 8)


@pytest.fixture(autouse=True)
def few_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "BUCKETS", BUCKETS)


@pytest.fixture(scope="module")
def cases(small_llama: Path) -> list[Case]:
    return make_cases(small_llama, 2, pictures=False)


def graphed(engine: Engine) -> tuple[GraphedForward, Recorder]:
    recorder = Recorder()
    forward = GraphedForward(engine.model, engine.cache, 4, capture=recorder)
    forward.prepare()
    return forward, recorder


def rows_of(engine: Engine, sizes: list[int]) -> Rows:
    """Chains of `sizes` tokens behind 6, 12, … others, each in blocks of its own."""
    lengths, contexts = np.array(sizes), 6 * np.arange(1, len(sizes) + 1)
    counts = [engine.scheduler.pool.blocks_for(n) for n in (contexts + lengths).tolist()]
    ends = 1 + np.cumsum(counts)
    return causal_rows(
        blocks=[range(end - count, end) for count, end in zip(counts, ends.tolist(), strict=True)],
        num_committed=contexts,
        lengths=lengths,
        token_ids=np.concatenate([3 + np.arange(size) for size in sizes]),
    )


def test_answers_are_generates(small_llama: Path, cases: list[Case]) -> None:
    """Prompts longer than a bucket run eagerly; decode and verify steps are replayed."""
    drafter = random_feature_drafter(small_llama)
    engine = make_engine(small_llama, drafter, "chain:3", max_running=4)
    engine._forward, recorder = graphed(engine)
    got = answers(run_all(engine, cases, SamplingParams(max_tokens=6)))
    assert got == [case.answer[:6] for case in cases]
    assert set(recorder.replayed) == {2, 8}


def test_stale_numbers_in_the_buffer_would_show(small_llama: Path, cases: list[Case]) -> None:
    """The control: a replay that misses its new numbers gives other answers."""
    engine = make_engine(small_llama, None, "off", max_running=4)
    engine._forward, recorder = graphed(engine)
    for bucket in engine._forward._buckets._buckets:
        bucket._buffer.fill = lambda step: None
    got = answers(run_all(engine, cases[:1], SamplingParams(max_tokens=6)))
    assert got != [cases[0].answer[:6]]
    assert recorder.replayed


@pytest.mark.parametrize(("sizes", "bucket"), [([1, 1], 2), ([1], 2), ([1, 2], 8), ([8], 8)])
@torch.inference_mode()
def test_a_step_runs_in_the_smallest_bucket_as_it_would_eagerly(
    small_llama: Path, sizes: list[int], bucket: int
) -> None:
    engine = make_engine(small_llama)
    data = engine.cache._data
    data.normal_(generator=torch.Generator().manual_seed(0))
    before = data.clone()
    groups = [rows_of(engine, sizes)]
    eager_step, expected = EagerForward(engine.model, engine.cache).run(groups, {})
    written = data.clone()
    forward, recorder = graphed(engine)
    data.copy_(before)
    step, got = forward.run(groups, {})
    assert recorder.replayed == [bucket]
    torch.testing.assert_close(got.last, expected.last, atol=1e-5, rtol=0)
    assert step.first_rows.tolist() == eager_step.first_rows.tolist()
    assert torch.equal(step.attention.slots[: sum(sizes)], eager_step.attention.slots)
    # Padding rows write to block 0 and nowhere else.
    torch.testing.assert_close(data[:, 1:], written[:, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[9], [1] * 5])
@torch.inference_mode()
def test_what_fits_no_bucket_runs_eagerly(small_llama: Path, sizes: list[int]) -> None:
    """Too many rows, or more sequences than were reckoned with."""
    engine = make_engine(small_llama)
    forward, recorder = graphed(engine)
    _, hidden = forward.run([rows_of(engine, sizes)], {})
    assert len(hidden.last) == sum(sizes)
    assert recorder.replayed == []


@torch.inference_mode()
def test_pictures_run_eagerly(small_llama: Path) -> None:
    engine = make_engine(small_llama)
    forward, recorder = graphed(engine)
    picture = torch.ones(2, engine.model.hidden_size)
    _, hidden = forward.run([rows_of(engine, [5])], {1: picture})
    _, expected = EagerForward(engine.model, engine.cache).run([rows_of(engine, [5])], {1: picture})
    assert torch.equal(hidden.last, expected.last)
    assert recorder.replayed == []


@torch.inference_mode()
def test_other_features_are_captured_anew(small_llama: Path) -> None:
    engine = make_engine(small_llama)
    forward, recorder = graphed(engine)
    forward.prepare()
    assert recorder.captures == len(BUCKETS)
    engine.model.capture((0, 1))
    forward.prepare()
    assert recorder.captures == 2 * len(BUCKETS)
    _, hidden = forward.run([rows_of(engine, [1])], {})
    assert hidden.features.shape == (1, 2 * engine.model.hidden_size)


@pytest.mark.parametrize("family", ["small_llama", "small_qwen2_vl"])
def test_nothing_in_a_forward_asks_the_device_for_a_value(
    family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does cannot be captured. On the meta device tensors have no values."""
    config = AutoConfig.from_pretrained(request.getfixturevalue(family))
    with torch.device("meta"):
        if family == "small_llama":
            stock = LlamaForCausalLM(config)
        else:
            stock = Qwen2VLForCausalLM(config.text_config, tie_word_embeddings=False)
        model = TargetModel(
            stock.requires_grad_(False).model,
            stock.lm_head,
            image_token_id=None,
            eos_token_ids=frozenset(),
            has_mrope=family == "small_qwen2_vl",
        )
    model.capture((0, 1))
    cache = KvCache(model.kv_shape, 4, 8, model.dtype, "meta")
    ids = torch.zeros(8, dtype=torch.int64, device="meta")
    positions = ids.expand(3, 8) if model.has_mrope else ids
    step = AttentionStep(cache.keys, cache.values, ids, ())
    # The attention kernel itself takes no values by its nature, and does not know this device.
    monkeypatch.setattr(decoder, "tree_attention", lambda query, *_: torch.empty_like(query))
    hidden = model.forward(model.embed(ids), positions, step)
    assert hidden.last.shape == (8, model.hidden_size)
    assert model.logits(hidden.last).shape == (8, model.vocab_size)
    # The control: one look at a value is an error here.
    monkeypatch.setattr(decoder, "tree_attention", lambda query, *_: query * query.sum().item())
    with pytest.raises(RuntimeError):
        model.forward(model.embed(ids), positions, step)
