"""Scenes: what sampling promises, and labels that hold a scene whole."""

import numpy as np

from smart_serve.bundled.scene import (
    COLOURS,
    KINDS,
    MAX_SHAPES,
    Scene,
    Shape,
    from_labels,
    sample_scene,
    to_labels,
)


def test_samples_hold_one_to_five_shapes_at_different_places() -> None:
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(300):
        scene = sample_scene(rng)
        places = [shape.place for shape in scene.shapes]
        assert places == sorted(set(places))
        counts.add(len(places))
    assert counts == set(range(1, MAX_SHAPES + 1))


def test_same_seed_same_scene() -> None:
    first = [sample_scene(np.random.default_rng(7)) for _ in range(2)]
    assert first[0] == first[1]
    assert sample_scene(np.random.default_rng(8)) != first[0]


def test_labels_hold_the_whole_scene() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        scene = sample_scene(rng)
        assert from_labels(to_labels(scene)) == scene


def test_of_counts_kind_and_colour() -> None:
    scene = Scene((Shape("circle", "red", "small", 0), Shape("circle", "blue", "large", 4)))
    assert len(scene.of("circle")) == 2
    assert len(scene.of(colour="red")) == 1
    assert len(scene.of("square", "red")) == 0
    assert scene.at(4) == scene.shapes[1]
    assert scene.at(5) is None
    assert len(KINDS) * len(COLOURS) == 18
