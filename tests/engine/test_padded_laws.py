"""A drafter that has fewer tokens to offer than were asked for pads its laws with token 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smart_serve.drafters.ngram import NgramDrafter
from smart_serve.drafters.protocol import DraftBatch, DraftInput
from smart_serve.engine.sampled import verified_by_laws
from smart_serve.engine.sequence import Sequence
from smart_serve.messages import GenerateRequest, SamplingParams
from smart_serve.speculation.plan import GrowthPlan

COUNT = 600


@pytest.mark.parametrize("rule", ["traversal", "specinfer"])
def test_padding_does_not_hide_a_real_token_0(rule: str) -> None:
    """The drafter is sure of 0 and the target gives it one half: so must the text."""
    prompt = (5, 6, 0, 7, 5, 6)
    params = SamplingParams(temperature=1.0, verification=rule)
    request = GenerateRequest(request_id="r", token_ids=prompt, image_spans=(), sampling=params)
    sequences = [Sequence(i, request, (), seed=i) for i in range(COUNT)]
    plan = GrowthPlan(
        policy="delayed:1,1,0",
        max_nodes=COUNT,
        max_depth=1,
        top_k=8,
        draw_seeds=tuple(range(COUNT)),
        temperatures=(1.0,) * COUNT,
    )
    drafter = NgramDrafter(None, max_tokens=COUNT * len(prompt))
    inputs = tuple(DraftInput(i, 0, np.asarray(prompt), None) for i in range(COUNT))
    growth = drafter.propose(DraftBatch(inputs, plan)).growth
    assert growth.laws is not None
    assert growth.forest.token_ids.tolist() == [0] * COUNT
    logits = torch.full((2 * COUNT, 10), -torch.inf)
    logits[:, [0, 9]] = 0.0
    drawn = torch.full((2 * COUNT,), -1)
    tokens = verified_by_laws(drawn, logits, sequences, growth.forest, growth.laws)
    # Five standard deviations of a fair coin.
    assert abs(int((tokens[::2] == 0).sum()) - COUNT / 2) < 5 * (COUNT / 4) ** 0.5
