"""Qwen2-VL: M-RoPE through prefill, chunks, decoding and trees gives transformers' own tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from draft_doubles import KnowingDrafter, thicket
from engine_rig import Case, answers, make_engine, run_all
from qwen_cases import make_qwen_cases
from small_models import IMAGE_TOKEN, VOCAB

from smart_serve.drafters.draft_model import DraftModel
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.engine.forward import EagerForward, ImageRows, RowGroups
from smart_serve.engine.measure import cost_grid, measure_costs
from smart_serve.errors import ClientError
from smart_serve.models.families import load_target
from smart_serve.models.rope import RopePositions
from smart_serve.paging.kv_cache import KvCache


@pytest.fixture(scope="module")
def cases(small_qwen2_vl: Path) -> list[Case]:
    return make_qwen_cases(small_qwen2_vl, 12)


def expected(cases: list[Case]) -> list[tuple[int, ...]]:
    return [case.answer for case in cases]


def knowing(cases: list[Case]) -> KnowingDrafter:
    """Draws thickets of right and wrong tokens."""
    drafter = KnowingDrafter(thicket(np.random.default_rng(4), VOCAB))
    drafter.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(cases)}
    return drafter


def test_the_references_differ(cases: list[Case]) -> None:
    assert len(set(expected(cases))) > 8
    assert {len(case.spans) for case in cases} == {0, 1, 2, 3}


def test_alone_equals_generate(small_qwen2_vl: Path, cases: list[Case]) -> None:
    engine = make_engine(small_qwen2_vl, None, "off")
    assert [answers(run_all(engine, [case]))[0] for case in cases] == expected(cases)


@pytest.mark.parametrize("policy", ["off", "eagle2", "smart"])
@pytest.mark.parametrize("chunk", [7, 512])
@pytest.mark.parametrize("every", [0, 2])
def test_mixed_batches_chunks_and_trees_equal_generate(
    small_qwen2_vl: Path, cases: list[Case], policy: str, chunk: int, every: int
) -> None:
    engine = make_engine(small_qwen2_vl, knowing(cases), policy, prefill_chunk_tokens=chunk)
    sequences = run_all(engine, cases, every=every)
    assert answers(sequences) == expected(cases)
    accepted = sum(sequence.tally.accepted for sequence in sequences)
    assert (accepted > 20) == (policy != "off")


def test_pre_emption_changes_nothing(small_qwen2_vl: Path, cases: list[Case]) -> None:
    engine = make_engine(small_qwen2_vl, knowing(cases), kv_tokens=120, prefill_chunk_tokens=16)
    assert answers(run_all(engine, cases)) == expected(cases)


def test_the_target_itself_as_draft_model_is_always_right(
    small_qwen2_vl: Path, cases: list[Case]
) -> None:
    """It sees the pictures at their own positions, so every step gains a whole path."""
    model = load_target(small_qwen2_vl, torch.float32, "cpu")
    network = DraftModel(model, VOCAB, IMAGE_TOKEN, sees_images=True)
    drafter = NetworkDrafter(network, num_blocks=600, block_tokens=4)
    engine = make_engine(small_qwen2_vl, drafter, "chain:3", prefill_chunk_tokens=9)
    sequences = run_all(engine, cases)
    assert answers(sequences) == expected(cases)
    for sequence in sequences:
        # One token comes from prefill; the last one needs no tree.
        drafted = range(1, sequence.num_generated)
        assert sequence.tally.target_steps == 1 + len(drafted[::4])


def test_costs_are_measured_on_three_axes(
    small_qwen2_vl: Path, small_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As steps are served, so that captured graphs run them."""
    shapes: dict[str, set[int]] = {}
    real = EagerForward.run

    def recorded(self: EagerForward, groups: RowGroups, images: ImageRows) -> object:
        seen.update(len(rows.positions) for rows in groups)
        return real(self, groups, images)

    monkeypatch.setattr(EagerForward, "run", recorded)
    for folder in (small_qwen2_vl, small_llama):
        seen = shapes.setdefault(folder.name, set())
        model = load_target(folder, torch.float32, "cpu")
        cache = KvCache(model.kv_shape, 40, 4, model.dtype, model.device)
        forward = EagerForward(model, cache)
        grid = cost_grid(model, cache, forward, 2)
        measure_costs(model, forward, grid, progress=False)
    assert list(shapes.values()) == [{3}, {1}]


def exchanged(rope: RopePositions, indices: np.ndarray) -> np.ndarray:
    return RopePositions.at(rope, indices)[[0, 2, 1]]


def one_axis(rope: RopePositions, indices: np.ndarray) -> np.ndarray:
    return np.tile(indices, (3, 1))


@pytest.mark.parametrize("wrong", [exchanged, one_axis])
def test_wrong_positions_change_answers(
    small_qwen2_vl: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch, wrong: object
) -> None:
    """The control: rows taken for columns, or plain indices, must fail the comparison."""
    engine = make_engine(small_qwen2_vl, None, "off")

    class Wrong(RopePositions):
        at = wrong

    monkeypatch.setattr(engine.model, "rope_positions", Wrong)
    got = answers(run_all(engine, cases))
    pictured = [i for i, case in enumerate(cases) if case.spans]
    assert [got[i] for i in pictured] != [cases[i].answer for i in pictured]
    plain = [i for i, case in enumerate(cases) if not case.spans]
    assert [got[i] for i in plain] == [cases[i].answer for i in plain]


@pytest.mark.parametrize("grid", [None, (0, 0), (-1, -4), (1, 3)])
def test_a_picture_without_its_grid_is_refused(
    small_qwen2_vl: Path, cases: list[Case], grid: tuple[int, int] | None
) -> None:
    engine = make_engine(small_qwen2_vl, None, "off")
    spans = tuple(msgspec.structs.replace(span, grid=grid) for span in cases[1].spans)
    bad = replace(cases[1], spans=spans)
    with pytest.raises(ClientError, match="grid"):
        engine.add(bad.request(), bad.features)


def test_overlapping_pictures_are_refused(small_qwen2_vl: Path, cases: list[Case]) -> None:
    engine = make_engine(small_qwen2_vl, None, "off")
    case = cases[2]
    bad = replace(case, spans=case.spans[::-1], features=case.features[::-1])
    with pytest.raises(ClientError, match="place"):
        engine.add(bad.request(), bad.features)
