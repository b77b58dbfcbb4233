"""The synthetic drafter is as good, and as wrong about it, as it is told to be."""

from __future__ import annotations

import numpy as np
import pytest

from smart_serve.bench.simulator.drafter import Children, Skill, SyntheticDrafter

NODES = 20_000


def children(skill: Skill) -> Children:
    drafter = SyntheticDrafter(skill, np.random.default_rng(0))
    drafter.resize(100)
    return drafter.children(np.arange(NODES) % 100, 6)


@pytest.mark.parametrize("quality", [0.3, 0.6, 0.85])
def test_the_best_child_is_accepted_as_often_as_the_quality_says(quality: float) -> None:
    found = children(Skill(quality=quality, spread=0.0, confusion=0.0))
    assert found.acceptance.max(axis=1).mean() >= quality - 0.02
    assert found.is_true.mean(axis=0) == pytest.approx(found.acceptance.mean(axis=0), abs=0.01)


def test_one_child_at_most_is_true() -> None:
    assert children(Skill()).is_true.sum(axis=1).max() == 1


def test_confidences_are_a_distribution_best_first() -> None:
    confidences = children(Skill()).confidences
    assert np.all(np.diff(confidences, axis=1) <= 0)
    assert np.all(confidences.sum(axis=1) <= 1.0 + 1e-9)


def test_overconfidence_is_what_calibration_must_undo() -> None:
    boastful = children(Skill(overconfidence=4.0, confusion=0.0))
    modest = children(Skill(overconfidence=1.0, confusion=0.0))
    assert boastful.confidences[:, 0].mean() > boastful.acceptance[:, 0].mean() + 0.05
    assert modest.confidences == pytest.approx(modest.acceptance)


def test_requests_differ() -> None:
    by_request = children(Skill()).acceptance[:, 0].reshape(-1, 100).mean(axis=0)
    alike = children(Skill(spread=0.0)).acceptance[:, 0].reshape(-1, 100).mean(axis=0)
    assert by_request.std() > 3 * alike.std()


def test_a_useless_drafter_is_as_confident_as_a_useful_one() -> None:
    useless = children(Skill(worth=0.0))
    assert not useless.is_true.any()
    assert useless.confidences == pytest.approx(children(Skill()).confidences)
