"""A selector learns what its features tell, and nothing where they tell nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smart_serve.selection import train as training
from smart_serve.selection.roots import Roots
from smart_serve.selection.train import Verdict, objective, train
from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.selector import FEATURES, Selector, all_actions

ROOT_ENTROPY = FEATURES.index("root_entropy")
TABLE = CostTable((1,), (64,), ((Curve((1.0, 512.0), (10.0, 60.0)),),))
DRAFTER = Curve((1.0, 128.0), (1.0, 3.0))


def roots(count: int, rng: np.random.Generator) -> Roots:
    """At every other root all is accepted, at the others nothing; the entropy says which."""
    actions = np.asarray(all_actions())
    features = rng.normal(0.0, 1.0, (count, len(FEATURES)))
    features[:, FEATURES.index("log_context")] = np.log(128.0)
    is_sure = np.arange(count) % 2 == 0
    features[:, ROOT_ENTROPY] = np.where(is_sure, 0.1, 2.0) + rng.normal(0.0, 0.05, count)
    shapes = actions[rng.integers(0, len(actions), count)]
    return Roots(features, shapes, np.where(is_sure, shapes[:, 1] + shapes[:, 2], 0))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "VALUE_STEPS", 500)
    monkeypatch.setattr(training, "SELECTOR_STEPS", 300)


def trained(data: Roots) -> tuple[Selector, Verdict]:
    return train(data, TABLE, DRAFTER, seed=0, told=lambda what, done, total: None)


@pytest.mark.usefixtures("quick")
def test_it_draws_deep_where_drafts_are_accepted_and_little_elsewhere() -> None:
    data = roots(6_000, np.random.default_rng(0))
    selector, verdict = trained(data)
    sure, unsure = data.features[:2].copy()
    lengths = selector.choose(np.stack((sure, unsure)))[:, 1:].sum(axis=1)
    assert lengths[0] >= lengths[1] + 3
    assert verdict.explained > 0.8
    assert min(verdict.gains.values()) > 1.1
    # The control: features that say nothing of their root.
    order = np.random.default_rng(1).permutation(len(data.accepted))
    _, blind = trained(Roots(data.features[order], data.shapes, data.accepted))
    assert max(blind.gains.values()) < 1.05


def test_the_objective_is_the_throughput_over_the_best_static_shapes() -> None:
    tokens = torch.tensor([[2.0, 1.0], [2.0, 5.0]], dtype=torch.float64)
    step_ms = torch.tensor([1.0, 2.0], dtype=torch.float64)
    # Static: 4 tokens in 2 ms, or 6 in 4; at both roots the first shape brings the base's 2 a ms.
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert objective(first, tokens, step_ms).item() == pytest.approx(0.0)
    best = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert objective(best, tokens, step_ms).item() == pytest.approx(-np.log(7 / 3 / 2))
    # The other way round: 3 tokens... in 3 ms, and the worse root brings half a token a ms.
    worst = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    expected = -np.log(3 / 3 / 2) + (1 - 0.5 / 2) ** 2
    assert objective(worst, tokens, step_ms).item() == pytest.approx(expected)
