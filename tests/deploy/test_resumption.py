from __future__ import annotations

import pytest

from deploy.resumption import Resumption
from smart_serve.messages import GenerateRequest, RequestStats, SamplingParams, TokenChunk


def request_of(**sampling: object) -> GenerateRequest:
    params = SamplingParams(max_tokens=10, **sampling)
    return GenerateRequest(request_id="r", token_ids=(1, 2, 3), sampling=params)


def test_one_replica_sees_the_request_and_its_stats_pass() -> None:
    resumption = Resumption(request_of(seed=5))
    assert resumption.request() == request_of(seed=5)
    last = TokenChunk(token_ids=(9,), finish_reason="stop", stats=RequestStats(target_steps=1))
    assert resumption.take(last) is last


def test_a_request_without_a_seed_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="each replica"):
        Resumption(request_of())


def test_the_second_replica_goes_on_where_the_first_stopped() -> None:
    resumption = Resumption(request_of(seed=5))
    resumption.request()
    resumption.take(TokenChunk(token_ids=(7, 8), num_accepted=1, num_steps=2))
    resumption.take(TokenChunk(token_ids=(9,)))
    second = resumption.request()
    assert second.token_ids == (1, 2, 3, 7, 8, 9)
    assert second.sampling == SamplingParams(max_tokens=7, seed=5)
    resumption.take(TokenChunk(token_ids=(4,)))
    third = resumption.request()
    assert third.token_ids == (1, 2, 3, 7, 8, 9, 4)
    assert third.sampling.max_tokens == 6
    assert (second.num_resumed, third.num_resumed) == (3, 4)
    stats = RequestStats(
        prompt_tokens=7, completion_tokens=2, target_steps=1, accepted_tokens=1, verify_ms=2.0
    )
    last = resumption.take(TokenChunk(token_ids=(5, 6), finish_reason="stop", stats=stats))
    assert last.stats == RequestStats(
        prompt_tokens=3, completion_tokens=6, target_steps=5, accepted_tokens=2, verify_ms=2.0
    )
