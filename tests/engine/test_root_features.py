"""What the selector is told of a root, against the formulas."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_rig import Case, make_engine, random_feature_drafter, run_all

from smart_serve.engine.root_features import root_features
from smart_serve.engine.sequence import Sequence
from smart_serve.messages import GenerateRequest, SamplingParams
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.tree import Forest


def test_distances_of_p_and_q_at_the_root() -> None:
    """Two trees, only the second of which was drawn; its request cuts p by top-p."""
    p_row = np.asarray([0.5, 0.3, 0.15, 0.05])
    q_row = np.asarray([0.25, 0.75, 0.0, 0.0])
    forest = Forest(
        offsets=np.asarray([0, 0, 1]), token_ids=np.asarray([1]), parents=np.asarray([0]),
        depths=np.asarray([1]), confidences=np.ones(1), path_probs=np.ones(1),
    )  # fmt: skip
    laws = DraftLaws(
        trees=np.asarray([1]), rows=np.asarray([0]), token_ids=np.asarray([[1, 0]]),
        probs=np.asarray([[0.75, 0.25]]), draw_trees=np.asarray([1]), draw_rows=np.asarray([1]),
        with_replacement=True,
    )  # fmt: skip
    sampling = SamplingParams(temperature=1.0, top_p=0.75)
    request = GenerateRequest(request_id="r", token_ids=(1, 2), sampling=sampling)
    sequences = [Sequence(i, request, (), seed=0) for i in range(2)]
    logits = torch.from_numpy(np.log(np.stack((p_row, p_row, p_row))))
    got = root_features(logits, sequences, forest, laws)
    assert np.isnan(got[0]).all()
    p = np.asarray([0.5, 0.3, 0.0, 0.0]) / 0.8  # What top-p leaves.
    inside = slice(0, 2)
    expected = (
        -(p * np.log(p, where=p > 0, out=np.zeros(4))).sum(),
        -(q_row[inside] * np.log(q_row[inside])).sum(),
        (p[inside] * np.log(p[inside] / q_row[inside])).sum(),
        (q_row[inside] * np.log(q_row[inside] / p[inside])).sum(),
        np.abs(p - q_row).sum(),
    )
    assert got[1] == pytest.approx(expected)


def test_a_sequence_carries_them_from_step_to_step(
    small_llama: Path, llama_cases: list[Case]
) -> None:
    engine = make_engine(small_llama, random_feature_drafter(small_llama), "selector")
    warm = SamplingParams(max_tokens=12, temperature=0.9, seed=1, verification="traversal")
    sequences = run_all(engine, llama_cases[:2], warm)
    for sequence in sequences:
        features = sequence.draft.root_features
        assert all(map(math.isfinite, features))
        assert 0.0 < features[4] < 2.0  # Σ|p − q| of a drafter that is not the target.
    # Greedy requests have no p to compare: their trees are the static ones.
    (cold,) = run_all(engine, llama_cases[:1], SamplingParams(max_tokens=6))
    assert all(map(math.isnan, cold.draft.root_features))
