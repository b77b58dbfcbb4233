"""Tree drafting over the paged cache equals a dense forward of the network over each path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_draft import (
    HIDDEN,
    History,
    LogProbs,
    as_drafter,
    dense_draft_model,
    dense_eagle,
    dense_eagle3,
    replayed,
    small_draft_model,
    small_eagle,
    small_eagle3,
)
from small_models import VOCAB

from smart_serve.drafters import frontier, network_drafter
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.drafters.protocol import DraftBatch, DrafterUnavailable, DraftInput
from smart_serve.paging import buckets
from smart_serve.speculation.growth import TreeGrower
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.policies import make_grower
from smart_serve.speculation.tree import Forest

PLAN = GrowthPlan(policy="eagle2", max_nodes=400, max_depth=4, top_k=3, nodes_per_tree=30)
KINDS = (
    *("eagle", "eagle-two-layers", "eagle-without-bias", "eagle-qkv-bias", "eagle3"),
    *("text-model", "multimodal-model", "multimodal-model-for-text"),
)

Pair = tuple[NetworkDrafter, LogProbs]


@pytest.fixture
def pair(
    request: pytest.FixtureRequest, small_llama: Path, small_llava: Path, small_qwen2_vl: Path
) -> Iterator[Pair]:
    """A drafter of the kind asked for, and its dense form."""
    with torch.inference_mode():
        match request.param:
            case "eagle3":
                eagle3 = small_eagle3()
                yield as_drafter(eagle3), dense_eagle3(eagle3)
            case "text-model":
                text = small_draft_model(small_llama, sees_images=False)
                yield as_drafter(text), dense_draft_model(small_llama, sees_images=False)
            case "multimodal-model-for-text":
                model = small_draft_model(small_qwen2_vl, sees_images=False)
                yield as_drafter(model), dense_draft_model(small_qwen2_vl, sees_images=False)
            case "multimodal-model":
                model = small_draft_model(small_llava, sees_images=True)
                yield as_drafter(model), dense_draft_model(small_llava, sees_images=True)
            case kind:
                eagle = small_eagle(
                    layers=2 if kind == "eagle-two-layers" else 1,
                    fc_bias=kind != "eagle-without-bias",
                    qkv_bias=kind == "eagle-qkv-bias",
                )
                yield as_drafter(eagle), dense_eagle(eagle)


@pytest.fixture
def drafter() -> Iterator[NetworkDrafter]:
    with torch.inference_mode():
        yield as_drafter(small_eagle())


def numbered(item: DraftInput, sequence_id: int) -> DraftInput:
    return DraftInput(sequence_id, item.start, item.token_ids, item.vectors)


def record_layers(monkeypatch: pytest.MonkeyPatch) -> list[TreeGrower]:
    """The growers that the drafter makes, kept so that all candidates can be looked at."""
    growers: list[TreeGrower] = []

    def kept(*arguments: object) -> TreeGrower:
        growers.append(make_grower(*arguments))
        return growers[-1]

    monkeypatch.setattr(network_drafter, "make_grower", kept)
    return growers


def check_against_dense(grower: TreeGrower, histories: list[History], dense: LogProbs) -> int:
    """Compare the children of every expanded node; returns how many nodes there were."""
    tokens, parents = grower.column("token_ids"), grower.column("parents")
    trees, confidences = grower.column("trees"), grower.column("confidences")
    num_expanded = 0
    for depth, layer in enumerate(grower.layers):
        width = grower.plan.top_k
        for group in range(0, len(layer.token_ids), width):
            path: list[int] = []
            node = int(layer.parents[group])
            for _ in range(depth):
                path.insert(0, int(tokens[node]))
                node = int(parents[node])
            tree = int(trees[layer.first_id + group])
            assert node == tree
            expected = dense(histories[tree], path).topk(width)
            ids = slice(layer.first_id + group, layer.first_id + group + width)
            assert tokens[ids].tolist() == expected.indices.tolist()
            got = np.log(confidences[ids])
            assert np.abs(got - expected.values.double().numpy()).max() < 1e-4
            num_expanded += 1
    return num_expanded


@pytest.mark.parametrize("pair", KINDS, indirect=True)
@pytest.mark.parametrize("is_graphed", [False, True], ids=["eager", "graphed"])
def test_every_expanded_node_equals_a_forward_from_scratch(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, is_graphed: bool
) -> None:
    """Prompts of mixed lengths with pictures, then catching up by different numbers of rows."""
    drafter, dense = pair
    growers = record_layers(monkeypatch)
    monkeypatch.setattr(buckets, "BUCKETS", (8, 12))
    recorder = replayed(drafter) if is_graphed else None
    rng = np.random.default_rng(0)
    histories = [History(drafter.info) for _ in range(3)]
    for counts in ((9, 30, 2), (1, 3, 2), (4, 1, 6)):
        inputs = tuple(
            numbered(history.extend(rng, count, pictures=count > 5), i)
            for i, (history, count) in enumerate(zip(histories, counts, strict=True))
        )
        proposal = drafter.propose(DraftBatch(inputs, PLAN))
        assert proposal.problem(3, VOCAB, PLAN) is None
        assert proposal.unknown == ()
        assert check_against_dense(growers[-1], histories, dense) > 25
    if recorder is not None:
        assert set(recorder.replayed) == {8, 12}
    drafter.close([0, 1, 2])
    assert drafter.free_blocks == drafter.total_blocks


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_a_wrong_position_would_show(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with nodes of a layer one position off the comparison must fail."""
    drafter, dense = pair
    growers = record_layers(monkeypatch)
    real = frontier.Rows

    def shifted(**fields: object) -> frontier.Rows:
        return real(**{**fields, "positions": fields["positions"] + 1})

    monkeypatch.setattr(frontier, "Rows", shifted)
    history = History(drafter.info)
    drafter.propose(DraftBatch((history.extend(np.random.default_rng(1), 9),), PLAN))
    with pytest.raises(AssertionError):
        check_against_dense(growers[-1], [history], dense)


@pytest.mark.parametrize("pair", ["eagle", "eagle3", "text-model"], indirect=True)
def test_stale_inputs_of_a_graph_would_show(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of graphs: one that goes on reading what its rows were at first."""
    drafter, dense = pair
    growers = record_layers(monkeypatch)
    monkeypatch.setattr(buckets, "BUCKETS", (8, 12))
    recorder = replayed(drafter)
    drafter._forward._inputs = drafter._forward._inputs.clone()
    history = History(drafter.info)
    drafter.propose(DraftBatch((history.extend(np.random.default_rng(1), 9),), PLAN))
    assert recorder.replayed
    with pytest.raises(AssertionError):
        check_against_dense(growers[-1], [history], dense)


@pytest.mark.parametrize("pair", ["text-model", "multimodal-model", "eagle"], indirect=True)
def test_a_picture_that_is_read_wrongly_would_show(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of pictures: the dense form of another one must differ."""
    drafter, dense = pair
    growers = record_layers(monkeypatch)
    history = History(drafter.info)
    item = history.extend(np.random.default_rng(1), 12, pictures=True)
    drafter.propose(DraftBatch((item,), PLAN))
    assert check_against_dense(growers[-1], [history], dense) > 5
    if drafter.info.vectors == "none":
        history.tokens[1:5] = [7, 7, 7, 7]
    history.vectors[1:5] *= -1
    with pytest.raises(AssertionError):
        check_against_dense(growers[-1], [history], dense)


def test_trees_do_not_depend_on_their_batch(drafter: NetworkDrafter) -> None:
    rng = np.random.default_rng(2)
    inputs = [
        numbered(History(drafter.info).extend(rng, n), i) for i, n in enumerate((5, 21, 1, 12))
    ]
    together = drafter.propose(DraftBatch(tuple(inputs), PLAN)).growth.forest
    for i, item in enumerate(inputs):
        alone = as_drafter(small_eagle()).propose(DraftBatch((item,), PLAN)).growth.forest
        begin, end = together.offsets[i], together.offsets[i + 1]
        assert together.token_ids[begin:end].tolist() == alone.token_ids.tolist()
        assert together.parents[begin:end].tolist() == alone.parents.tolist()
        assert np.allclose(together.confidences[begin:end], alone.confidences, atol=1e-5)


def test_a_lost_sequence_is_reported_and_the_others_get_trees(drafter: NetworkDrafter) -> None:
    rng = np.random.default_rng(3)
    known, lost = History(drafter.info), History(drafter.info)
    drafter.propose(DraftBatch((numbered(known.extend(rng, 5), 7),), PLAN))
    lost.extend(rng, 4)
    inputs = (numbered(lost.extend(rng, 2), 8), numbered(known.extend(rng, 2), 7))
    proposal = drafter.propose(DraftBatch(inputs, PLAN))
    assert proposal.unknown == (0,)
    assert proposal.growth.forest.sizes.tolist() == [0, 30]
    gap = DraftInput(7, 99, np.asarray([1]), torch.zeros(1, HIDDEN))
    only_lost = drafter.propose(DraftBatch((gap,), PLAN))
    assert only_lost.unknown == (0,)
    assert only_lost.growth.forest.problem(VOCAB, 0) is None
    # It can be opened again from the start.
    again = DraftInput(7, 0, np.arange(3), torch.zeros(3, HIDDEN))
    assert drafter.propose(DraftBatch((again,), PLAN)).unknown == ()


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_a_pass_that_fails_costs_its_sequences_their_place_and_nothing_else(
    drafter: NetworkDrafter, monkeypatch: pytest.MonkeyPatch, passes: int
) -> None:
    """`passes` go well before one runs out of memory."""
    rng, left = np.random.default_rng(6), passes
    other, failing = History(drafter.info), History(drafter.info)
    drafter.propose(DraftBatch((numbered(other.extend(rng, 5), 0),), PLAN))
    drafter.propose(DraftBatch((numbered(failing.extend(rng, 5), 1),), PLAN))
    real = drafter._network.forward

    def forward(*arguments: object) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise torch.OutOfMemoryError
        return real(*arguments)

    monkeypatch.setattr(drafter._network, "forward", forward)
    with pytest.raises(DrafterUnavailable):
        drafter.propose(DraftBatch((numbered(failing.extend(rng, 3), 1),), PLAN))
    monkeypatch.undo()
    again = (numbered(failing.extend(rng, 1), 1), numbered(other.extend(rng, 1), 0))
    proposal = drafter.propose(DraftBatch(again, PLAN))
    assert proposal.unknown == (0,)
    assert proposal.growth.forest.sizes.tolist() == [0, 30]
    drafter.close([0])
    assert drafter.free_blocks == drafter.total_blocks


@pytest.mark.parametrize("num_blocks", range(2, 16))
def test_a_small_cache_limits_trees_and_never_leaks(num_blocks: int) -> None:
    drafter = as_drafter(small_eagle(), num_blocks)
    rng = np.random.default_rng(4)
    histories = [History(drafter.info) for _ in range(2)]
    alive = {0, 1}
    for counts in ((7, 6), (2, 3), (9, 1)):
        order = sorted(alive)
        inputs = tuple(numbered(histories[i].extend(rng, counts[i]), i) for i in order)
        if not inputs:
            break
        proposal = drafter.propose(DraftBatch(inputs, PLAN))
        assert isinstance(proposal.growth.forest, Forest)
        assert proposal.problem(len(inputs), VOCAB, PLAN) is None
        alive -= {order[i] for i in proposal.unknown}
        committed = sum(-(-len(histories[i].tokens) // 4) for i in alive)
        assert drafter.total_blocks - drafter.free_blocks == committed
    drafter.close([0, 1])
    drafter.close([0])
    assert drafter.free_blocks == drafter.total_blocks
