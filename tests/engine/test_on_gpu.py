"""What only a CUDA device can show: recorded graphs, and memory that really runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from smart_serve import LLM, SamplingParams
from smart_serve.bench.workload import picture_questions
from smart_serve.drafters.forward import EagerDraftForward, GraphedDraftForward
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.engine.forward import EagerForward
from smart_serve.engine.graphs import GraphedForward
from smart_serve.llm import Completion

pytestmark = pytest.mark.gpu
NUM_QUESTIONS = 32
SPARE_BYTES = 8 * 2**20
"""torch takes memory for tensors of 1 MiB and more in pieces of 20 MiB, for smaller ones of 2: the
former no longer fit, the latter do (CUDACachingAllocator, `kLargeBuffer` and `kSmallBuffer`)."""


@pytest.fixture
def llm() -> LLM:
    # Whole prompts in one step, in float32: some thousand rows of 5 KiB between MLP and MLP.
    return LLM(device="cuda", dtype="float32", max_running=NUM_QUESTIONS, prefill_chunk_tokens=4096)


def answers(llm: LLM, policy: str) -> list[Completion]:
    questions = picture_questions(NUM_QUESTIONS, seed=9)
    prompts = [{"prompt": one.text, "images": list(one.pictures)} for one in questions]
    found = llm.generate(prompts, SamplingParams(max_tokens=48, policy=policy))
    llm.engine.scheduler.pool.check_idle()
    return found


@pytest.mark.parametrize("policy", ["off", "eagle2"])
def test_recorded_graphs_give_what_the_layers_give(llm: LLM, policy: str) -> None:
    engine, drafter = llm.engine, llm.engine.drafting.drafter
    assert isinstance(engine._forward, GraphedForward)
    assert isinstance(drafter, NetworkDrafter)
    assert isinstance(drafter._forward, GraphedDraftForward)
    graphed = answers(llm, policy)
    engine._forward = EagerForward(engine.model, engine.cache)
    drafter._forward = EagerDraftForward(drafter._network, drafter._cache)
    eager = answers(llm, policy)
    assert [one.token_ids for one in graphed] == [one.token_ids for one in eager]
    trees = [[one.stats.tree_sizes for one in found] for found in (graphed, eager)]
    assert trees[0] == trees[1]
    accepted = [sum(one.stats.accepted_tokens for one in found) for found in (graphed, eager)]
    assert (accepted[0] > 0) == (policy != "off")
    # Where two drafts are as likely as each other, rounding decides.
    assert accepted[0] == pytest.approx(accepted[1], rel=0.01)


@contextmanager
def hardly_any_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_reserved() + SPARE_BYTES
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_steps_that_find_no_memory_are_done_in_parts(llm: LLM) -> None:
    # Pictures are encoded by the first run, and prompts with pictures run without graphs.
    expected = [one.token_ids for one in answers(llm, "off")]
    before = torch.cuda.memory_stats()["num_ooms"]
    with hardly_any_memory():
        found = [one.token_ids for one in answers(llm, "off")]
    assert torch.cuda.memory_stats()["num_ooms"] > before
    assert found == expected
