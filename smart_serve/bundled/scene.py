"""A scene: one to five coloured shapes, each at its own place of a 3x3 grid."""

import msgspec
import numpy as np
from numpy.typing import NDArray

KINDS = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SIZES = ("small", "large")
PLACES = (
    "top left",
    "top centre",
    "top right",
    "middle left",
    "centre",
    "middle right",
    "bottom left",
    "bottom centre",
    "bottom right",
)
MAX_SHAPES = 5
# Share of scenes that draw from few kinds and colours, so that equal shapes meet often enough
# for counting and for "the only circle" to be learnt.
FEW_KINDS_SHARE = 0.4


class Shape(msgspec.Struct, frozen=True):
    """One shape; `place` counts the grid row by row, 0 (top left) to 8 (bottom right)."""

    kind: str
    colour: str
    size: str
    place: int


class Scene(msgspec.Struct, frozen=True):
    """The shapes of one picture, in order of their places."""

    shapes: tuple[Shape, ...]

    def at(self, place: int) -> Shape | None:
        """The shape at a place, if there is one."""
        return next((shape for shape in self.shapes if shape.place == place), None)

    def of(self, kind: str | None = None, colour: str | None = None) -> tuple[Shape, ...]:
        """The shapes of a kind and a colour; None stands for any."""
        return tuple(
            shape
            for shape in self.shapes
            if kind in (None, shape.kind) and colour in (None, shape.colour)
        )


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene of one to five shapes."""
    count = int(rng.integers(1, MAX_SHAPES + 1))
    kinds, colours = KINDS, COLOURS
    if rng.random() < FEW_KINDS_SHARE:
        kinds = tuple(rng.choice(KINDS, size=rng.integers(1, 3), replace=False).tolist())
        colours = tuple(rng.choice(COLOURS, size=rng.integers(1, 4), replace=False).tolist())
    places = sorted(rng.choice(len(PLACES), size=count, replace=False).tolist())
    return Scene(
        tuple(
            Shape(
                kind=str(rng.choice(kinds)),
                colour=str(rng.choice(colours)),
                size=str(rng.choice(SIZES)),
                place=place,
            )
            for place in places
        )
    )


def to_labels(scene: Scene) -> NDArray[np.int8]:
    """Class indices [9, 3]: kind + 1 (0 where empty), colour, size."""
    labels = np.zeros((len(PLACES), 3), dtype=np.int8)
    for shape in scene.shapes:
        labels[shape.place] = (
            KINDS.index(shape.kind) + 1,
            COLOURS.index(shape.colour),
            SIZES.index(shape.size),
        )
    return labels


def from_labels(labels: NDArray[np.int8]) -> Scene:
    """The scene of class indices [9, 3]; the inverse of `to_labels`."""
    return Scene(
        tuple(
            Shape(KINDS[kind - 1], COLOURS[colour], SIZES[size], place)
            for place, (kind, colour, size) in enumerate(labels.tolist())
            if kind
        )
    )
