"""The choice of a shape for each tree, from what is known of its root."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from growing import grow, plan_of

from smart_serve.errors import ConfigError
from smart_serve.speculation.growth import TreeGrower
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.policies import make_grower
from smart_serve.speculation.selector import (
    DEFAULT_ACTION,
    FEATURES,
    Action,
    Selector,
    all_actions,
    features_of,
    num_nodes,
)

SHORT, LONG, WIDE = (1, 1, 0), (1, 5, 0), (3, 1, 2)
TEMPERATURE = FEATURES.index("temperature")


def by_temperature() -> Selector:
    """LONG below 1, WIDE from 1 on; SHORT for what is not known."""
    first = np.zeros((len(FEATURES), 2))
    first[TEMPERATURE] = (1.0, -1.0)
    second = np.asarray([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    return Selector(
        actions=(SHORT, LONG, WIDE),
        best_static=SHORT,
        center=np.eye(len(FEATURES))[TEMPERATURE],
        scale=np.ones(len(FEATURES)),
        layers=((first, np.zeros(2)), (second, np.asarray([-1.0, 0.0, 1e-9]))),
    )


def plan_for(temperatures: tuple[float, ...], *, known: bool = True) -> GrowthPlan:
    own = (0.5 if known else math.nan,) * 5
    return plan_of(
        "selector", max_depth=16, max_nodes=16 * len(temperatures), temperatures=temperatures,
        draw_seeds=tuple(range(len(temperatures))),
        root_features=tuple((*own, 4.0, t, 1.0) for t in temperatures),
    )  # fmt: skip


def grown(plan: GrowthPlan, selector: Selector | None) -> TreeGrower:
    """Children by a law without certain tokens."""
    num_trees = len(plan.temperatures)
    grower = make_grower(plan, num_trees, selector)
    rows = num_trees
    while rows:
        tokens = np.tile(np.arange(3), (rows, 1))
        rows = len(grower.add_layer(tokens, np.log(np.tile([0.5, 0.3, 0.2], (rows, 1)))))
    return grower


def shapes_of(grower: TreeGrower) -> list[list[int]]:
    """Draws of every tree by depth."""
    growth = grower.finish()
    laws, forest = growth.laws, growth.forest
    assert laws is not None
    assert laws.problem(forest, 3) is None
    depths = forest.depths[laws.nodes(forest)]
    return [
        np.bincount(depths[laws.draw_trees == tree])[1:].tolist()
        for tree in range(forest.num_trees)
    ]


def test_every_tree_of_a_batch_has_the_shape_that_was_chosen_for_it() -> None:
    grower = grown(plan_for((0.5, 1.2, 0.7)), by_temperature())
    assert shapes_of(grower) == [[1] * 5, [1, 3, 3], [1] * 5]


def test_a_root_of_which_nothing_is_known_gets_the_best_static_tree() -> None:
    assert shapes_of(grown(plan_for((0.5, 1.2), known=False), by_temperature())) == [[1], [1]]


def test_without_a_selector_all_trees_are_the_default() -> None:
    assert shapes_of(grown(plan_for((0.5, 1.2)), None)) == [[1] * DEFAULT_ACTION[1]] * 2


def test_a_tree_is_drawn_the_same_in_any_batch() -> None:
    together = grown(plan_for((0.5, 1.2)), by_temperature()).finish().forest
    alone = grown(plan_for((0.5,)), by_temperature()).finish().forest
    assert together.only([0]).token_ids.tolist() == alone.token_ids.tolist()


def test_features_are_named_in_order() -> None:
    plan = plan_for((0.5, 1.2))
    features = features_of(plan, np.asarray([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    told = dict(zip(FEATURES, features[0].tolist(), strict=True))
    assert told["temperature"] == 0.5
    assert told["root_entropy"] == pytest.approx(math.log(2))
    assert features[1][FEATURES.index("root_entropy")] == 0.0
    assert told["log_draft_share"] == pytest.approx(math.log(plan.draft_layer(2) / 10.0))
    # 16 nodes of 64 on the way from 10 to 12 ms.
    assert told["log_tree_price"] == pytest.approx(math.log(1.05))
    assert told["log2_batch"] == 1.0


def test_actions_are_distinct_trees_of_bounded_size() -> None:
    def nodes(action: Action) -> tuple[int, ...]:
        k, trunk, branch = action
        return (1,) * trunk + (k,) * branch

    actions = all_actions()
    assert len({nodes(action) for action in actions}) == len(actions) == 125
    assert max(map(num_nodes, actions)) == 16
    assert DEFAULT_ACTION in actions


def test_a_selector_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "selector.json"
    by_temperature().write(path)
    back, rows = Selector.read(path), np.random.default_rng(0).normal(1.0, 1.0, (50, len(FEATURES)))
    assert back.choose(rows).tolist() == by_temperature().choose(rows).tolist()
    assert len(np.unique(back.choose(rows), axis=0)) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": ["x"]}, "train it again"),
        ({"center": [0.0]}, "train it again"),
        ({"actions": [[9, 9, 9], [1, 5, 0], [3, 1, 2]]}, "train it again"),
        ({"layers": []}, "train it again"),
        ({"layers": [{"weight": [[1.0]], "bias": [1.0]}]}, "train it again"),
        ({"scale": "wide"}, "cannot be read"),
        ({"more": 1}, "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "selector.json"
    by_temperature().write(path)
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **change}))
    with pytest.raises(ConfigError, match=words):
        Selector.read(path)


def test_other_policies_have_no_use_for_a_selector() -> None:
    plan = plan_of("chain:2", max_depth=2, top_k=1)
    same = make_grower(plan, 1, by_temperature())
    assert type(same) is type(grow(plan, 1, lambda tree, path: np.asarray([0.9])))
