"""Draws scenes for evaluation, from signed-distance fields in numpy; training never sees these.

It shares nothing with the training renderer: other colours (near the CSS ones), other sizes and
jitter, edges softened by distance instead of supersampling, no JPEG.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smart_serve.bundled.scene import Scene, Shape

Field = NDArray[np.float64]

# Fills, 0 to 1 RGB; each is shaded a little at random.
FILLS = {
    "red": ((0.86, 0.12, 0.14), (1.0, 0.0, 0.0), (0.75, 0.10, 0.12)),
    "green": ((0.0, 0.55, 0.1), (0.2, 0.7, 0.25), (0.13, 0.62, 0.30)),
    "blue": ((0.1, 0.25, 0.85), (0.0, 0.0, 0.95), (0.18, 0.38, 0.80)),
    "yellow": ((1.0, 0.9, 0.1), (0.97, 0.85, 0.12), (1.0, 1.0, 0.0)),
    "purple": ((0.5, 0.0, 0.5), (0.55, 0.2, 0.75), (0.45, 0.15, 0.62)),
    "orange": ((1.0, 0.6, 0.0), (0.95, 0.5, 0.1), (1.0, 0.55, 0.08)),
}
RADIUS_OF_CELL = {"small": (0.165, 0.215), "large": (0.335, 0.41)}
SIDES_PX = (96, 128, 160, 224, 336, 448, 512)


def render_heldout(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """An RGB picture of the scene, 96 to 512 px a side, square or nearly so."""
    side_px = int(rng.choice(SIDES_PX))
    height, width = side_px, max(96, min(512, round(side_px * rng.choice([1.0, 1.0, 0.9, 1.15]))))
    y_px, x_px = np.mgrid[0:height, 0:width] + 0.5
    pixels = np.ones((height, width, 3)) * rng.uniform(0.82, 1.0, size=3)
    border_px = side_px * rng.uniform(0.006, 0.012) if rng.random() < 0.4 else 0.0
    for shape in scene.shapes:
        distance = _distance_px(shape, x_px, y_px, (width, height), rng)
        fill = np.array(FILLS[shape.colour][int(rng.integers(3))]) * rng.uniform(0.94, 1.0)
        if border_px:
            pixels = _blend(pixels, fill * 0.35, distance - border_px)
        pixels = _blend(pixels, fill, distance)
    grain = rng.normal(0, rng.choice([0.0, 0.01]), size=pixels.shape)
    return Image.fromarray((np.clip(pixels + grain, 0, 1) * 255).round().astype(np.uint8))


def _blend(pixels: Field, fill: Field, distance_px: Field) -> Field:
    """Paint the inside (negative distance) with an edge one pixel wide."""
    cover = np.clip(0.5 - distance_px, 0, 1)[..., None]
    painted: Field = pixels * (1 - cover) + fill * cover
    return painted


def _distance_px(
    shape: Shape, x_px: Field, y_px: Field, picture_px: tuple[int, int], rng: np.random.Generator
) -> Field:
    """Signed distance [H, W] to the shape's edge, negative inside."""
    cell_w, cell_h = picture_px[0] / 3, picture_px[1] / 3
    radius = rng.uniform(*RADIUS_OF_CELL[shape.size]) * min(cell_w, cell_h)
    reach = 0.17 if shape.size == "small" else 0.06
    row, column = divmod(shape.place, 3)
    x = x_px - (column + 0.5 + rng.uniform(-reach, reach)) * cell_w
    y = y_px - (row + 0.5 + rng.uniform(-reach, reach)) * cell_h
    if shape.kind == "circle":
        circle: Field = np.hypot(x, y) - radius
        return circle
    turn = rng.uniform(-0.08, 0.08)
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    if shape.kind == "square":
        square: Field = np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
        return square
    # An upright equilateral triangle: three half planes, `apothem` from its centre.
    apothem = 0.58 * radius
    slanted = (np.abs(x) * 3**0.5 - (y - 0.15 * radius)) / 2
    triangle: Field = np.maximum(slanted, y - 0.15 * radius) - apothem
    return triangle
