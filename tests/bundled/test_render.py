"""Renderers: deterministic by seed, of the promised sizes, and strangers to each other."""

import ast
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smart_serve.bundled import render_heldout
from smart_serve.bundled.render import render
from smart_serve.bundled.scene import Scene, Shape, sample_scene

RENDERERS = (render, render_heldout.render_heldout)


@pytest.mark.parametrize("draw", RENDERERS)
def test_same_seed_same_picture(draw) -> None:  # type: ignore[no-untyped-def]
    scene = sample_scene(np.random.default_rng(0))
    first, second, other = (
        np.asarray(draw(scene, np.random.default_rng(seed)).resize((96, 96))) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("draw", RENDERERS)
def test_sides_are_96_to_512_px(draw) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    for _ in range(40):
        picture: Image.Image = draw(sample_scene(rng), rng)
        assert picture.mode == "RGB"
        assert 96 <= min(picture.size) <= max(picture.size) <= 512
        assert max(picture.size) <= 1.31 * min(picture.size)


@pytest.mark.parametrize("draw", RENDERERS)
@pytest.mark.parametrize("kind", ["circle", "square", "triangle"])
def test_a_shape_fills_its_place_and_no_other(draw, kind: str) -> None:  # type: ignore[no-untyped-def]
    scene = Scene((Shape(kind, "blue", "large", 5),))
    for seed in range(10):
        picture = draw(scene, np.random.default_rng(seed)).resize((90, 90))
        pixels = np.asarray(picture).astype(int)
        blue = pixels[..., 2] - pixels[..., 0] > 60
        inside = blue[30:60, 60:90].sum()
        # Of 900: a large triangle covers a tenth of its place at least.
        assert inside > 90
        assert inside > 0.9 * blue.sum()


def test_heldout_renderer_imports_nothing_of_the_training_renderer() -> None:
    tree = ast.parse(Path(render_heldout.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert {m for m in modules | names if m and "bundled" in m} == {"smart_serve.bundled.scene"}
    assert "PIL.ImageDraw" not in modules | names
