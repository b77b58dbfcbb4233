"""Fixed tree shapes, and the dynamic program that finds the best one."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from growing import grow, plan_of, random_children

from smart_serve.config import SpeculationConfig
from smart_serve.errors import ClientError, ConfigError
from smart_serve.messages import SamplingParams
from smart_serve.speculation.sequoia import best_static_tree, expected_tokens
from smart_serve.speculation.static_tree import EAGLE_SHAPE, Shape, load_shape, shape_problem

RATES = (0.6, 0.25, 0.1)


def grown_paths(shape: Shape, num_trees: int = 3) -> list[set[tuple[int, ...]]]:
    width = 1 + max(max(path) for path in shape)
    plan = plan_of(
        "static", shape=shape, max_depth=max(map(len, shape)), top_k=width, max_nodes=10_000
    )
    forest = grow(plan, num_trees, random_children(0, width)).finish().forest
    assert forest.problem(width, 10_000) is None
    trees = []
    for begin, end in itertools.pairwise(forest.offsets.tolist()):
        paths: list[tuple[int, ...]] = [()]
        for node in range(begin, end):
            paths.append((*paths[forest.parents[node]], int(forest.token_ids[node])))
        trees.append(set(paths[1:]))
    return trees


@pytest.mark.parametrize(
    "shape", [EAGLE_SHAPE, ((0,), (0, 0), (0, 0, 0)), ((1,), (1, 2), (0,), (0, 1)), ((2,),)]
)
def test_every_tree_has_exactly_the_given_shape(shape: Shape) -> None:
    assert grown_paths(shape) == [set(shape)] * 3


def test_a_sequence_that_ends_grows_no_further() -> None:
    plan = plan_of("static", shape=((0,), (1,), (0, 0)), max_depth=2, top_k=2, terminal_tokens=(0,))
    forest = grow(plan, 1, random_children(0, 2)).finish().forest
    assert forest.depths.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[0, 0]]", "parent"),
        ("[[0], [0]]", "twice"),
        ("[[0], []]", "empty"),
        ("[]", "1 to"),
        ("[[-1]]", "rank"),
        ("[[64]]", "rank"),
        ("[[0.5]]", "int"),
        ("[[", "truncated"),
    ],
)
def test_a_file_that_holds_no_tree_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "tree.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load_shape(file)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text("[[0], [1], [0, 0]]")
    assert load_shape(file) == ((0,), (1,), (0, 0))


def test_an_operator_may_name_a_file_and_a_request_may_not() -> None:
    assert SpeculationConfig(policy="static:/tree.json").policy == "static:/tree.json"
    assert SamplingParams(policy="static").policy == "static"
    with pytest.raises(ClientError):
        SamplingParams(policy="static:/etc/passwd")


def all_shapes(max_nodes: int, max_depth: int, width: int) -> list[Shape]:
    """Every tree, by adding one node at a time."""
    found: set[frozenset[tuple[int, ...]]] = {frozenset()}
    newest = found
    for _ in range(max_nodes):
        newest = {
            shape | {(*path, rank)}
            for shape in newest
            for path in ((), *shape)
            for rank in range(width)
            if len(path) < max_depth and (*path, rank) not in shape
        }
        found = found | newest
    return [tuple(sorted(shape)) for shape in found]


@pytest.mark.parametrize("layer_ms", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("node_ms", [0.02, 0.2, 1.5])
def test_the_best_tree_is_that_of_brute_force(layer_ms: float, node_ms: float) -> None:
    verify_ms = 4.0 + node_ms * np.arange(6.0)

    def rate(shape: Shape) -> float:
        depth = max(map(len, shape), default=0)
        return expected_tokens(shape, RATES) / (depth * layer_ms + float(verify_ms[len(shape)]))

    found = best_static_tree(RATES, verify_ms, layer_ms, 3)
    assert found == () or shape_problem(found) is None
    assert rate(found) == pytest.approx(max(map(rate, all_shapes(5, 3, 3))))


def test_where_nodes_cost_more_than_they_bring_there_is_no_tree() -> None:
    assert best_static_tree(RATES, 1.0 + np.arange(9.0), 0.1, 3) == ()


def test_a_staircase_is_seen_past_its_first_tread() -> None:
    steps = np.repeat([4.0, 4.5, 5.0], 16)
    assert len(best_static_tree(RATES, steps, 0.1, 8)) in (15, 31, 47)


def test_a_greedy_tree_of_the_wrong_rates_is_worse() -> None:
    """The control: the program's answer depends on the rates it is given."""
    verify_ms = 4.0 + 0.05 * np.arange(32.0)
    right = best_static_tree(RATES, verify_ms, 0.3, 6)
    wrong = best_static_tree(RATES[::-1], verify_ms, 0.3, 6)
    assert expected_tokens(right, RATES) > expected_tokens(wrong, RATES)
