"""Drafters of targets with M-RoPE: rows and tree nodes stand where their tokens do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from dense_draft import (
    MropeHistory,
    as_drafter,
    dense_draft_model,
    dense_eagle,
    replayed,
    small_draft_model,
    small_eagle,
)
from small_models import VOCAB
from test_network_drafter import PLAN, Pair, check_against_dense, record_layers

from smart_serve.drafters.protocol import DraftBatch
from smart_serve.paging import buckets


@pytest.fixture(params=["eagle", "draft-model"])
def pair(request: pytest.FixtureRequest, small_qwen2_vl: Path) -> Iterator[Pair]:
    with torch.inference_mode():
        if request.param == "eagle":
            eagle = small_eagle(qkv_bias=True, mrope=True)
            yield as_drafter(eagle), dense_eagle(eagle)
        else:
            model = small_draft_model(small_qwen2_vl, sees_images=True)
            yield as_drafter(model), dense_draft_model(small_qwen2_vl, sees_images=True)


@pytest.mark.parametrize("is_graphed", [False, True], ids=["eager", "graphed"])
def test_every_expanded_node_equals_a_forward_from_scratch(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, is_graphed: bool
) -> None:
    drafter, dense = pair
    growers = record_layers(monkeypatch)
    monkeypatch.setattr(buckets, "BUCKETS", (16,))
    recorder = replayed(drafter) if is_graphed else None
    rng = np.random.default_rng(0)
    histories = [MropeHistory(drafter.info) for _ in range(3)]
    for counts in ((9, 30, 2), (1, 3, 2), (4, 1, 8)):
        inputs = tuple(
            msgspec.structs.replace(history.extend(rng, count, pictures=count > 5), sequence_id=i)
            for i, (history, count) in enumerate(zip(histories, counts, strict=True))
        )
        proposal = drafter.propose(DraftBatch(inputs, PLAN))
        assert proposal.problem(3, VOCAB, PLAN) is None
        assert proposal.unknown == ()
        assert check_against_dense(growers[-1], histories, dense) > 25
    assert recorder is None or len(recorder.replayed) > 8


def test_positions_of_one_axis_would_show(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: told no positions, the drafter counts rows and its trees are others."""
    drafter, dense = pair
    growers = record_layers(monkeypatch)
    history = MropeHistory(drafter.info)
    item = history.extend(np.random.default_rng(1), 20, pictures=True)
    drafter.propose(DraftBatch((msgspec.structs.replace(item, positions=None),), PLAN))
    with pytest.raises(AssertionError):
        check_against_dense(growers[-1], [history], dense)
