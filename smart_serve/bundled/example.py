"""Draws the quick start's picture: `python -m smart_serve.bundled.example`."""

import numpy as np

from smart_serve.bundled import EXAMPLE_PICTURE
from smart_serve.bundled.render_heldout import render_heldout
from smart_serve.bundled.scene import Scene, Shape

EXAMPLE_SCENE = Scene(
    (
        Shape("circle", "red", "large", 0),
        Shape("square", "blue", "small", 2),
        Shape("triangle", "green", "large", 4),
        Shape("circle", "yellow", "small", 6),
        Shape("square", "purple", "large", 8),
    )
)
# The first seed that gives a square picture of 448 px on a very light tint, without grain.
EXAMPLE_SEED = 132


def main() -> None:
    """Draw the example picture."""
    render_heldout(EXAMPLE_SCENE, np.random.default_rng(EXAMPLE_SEED)).save(EXAMPLE_PICTURE)


if __name__ == "__main__":
    main()
