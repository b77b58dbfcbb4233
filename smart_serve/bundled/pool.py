"""A pool of rendered pictures on disk, so that training does not wait for the renderer.

`python -m smart_serve.bundled.pool --folder POOL --pictures 24000` takes about four minutes on
one core; training may start as soon as the first thousand pictures are there.
"""

import argparse
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smart_serve.bundled.render import render
from smart_serve.bundled.scene import PLACES, sample_scene, to_labels

INPUT_SIDE_PX = 96


class PicturePool:
    """Pictures [pictures, 96, 96, 3] uint8 and labels [pictures, 9, 3] int8 as memory maps."""

    def __init__(self, folder: Path, pictures: int | None = None) -> None:
        """Open the pool of `folder`, or create an empty one of that many pictures."""
        if pictures is not None:
            folder.mkdir(parents=True, exist_ok=True)
            shapes = ((pictures, INPUT_SIDE_PX, INPUT_SIDE_PX, 3), (pictures, len(PLACES), 3))
            for name, shape, dtype in zip(
                ("pixels", "labels"), shapes, (np.uint8, np.int8), strict=True
            ):
                np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
        mode: Literal["r", "r+"] = "r" if pictures is None else "r+"
        self.pixels: NDArray[np.uint8] = np.load(folder / "pixels.npy", mmap_mode=mode)
        self.labels: NDArray[np.int8] = np.load(folder / "labels.npy", mmap_mode=mode)

    def filled(self) -> int:
        """How many pictures have been rendered; every scene has a shape, so its labels show."""
        return int((self.labels[:, :, 0] > 0).any(axis=1).sum())

    def batch(
        self, rng: np.random.Generator, size: int, filled: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
        """A random batch, each picture turned or mirrored at random together with its labels."""
        rows = rng.integers(0, filled, size=size)
        turned = [_turn(self.pixels[r], self.labels[r], int(rng.integers(8))) for r in rows]
        return np.stack([p for p, _ in turned]), np.stack([label for _, label in turned])


def _turn(
    pixels: NDArray[np.uint8], labels: NDArray[np.int8], symmetry: int
) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """One of the square's eight symmetries; upright pictures stay the most common ones."""
    grid = labels.reshape(3, 3, 3)
    if symmetry & 1:
        pixels, grid = pixels[:, ::-1], grid[:, ::-1]
    if symmetry == 6:
        pixels, grid = pixels[::-1], grid[::-1]
    if symmetry == 7:
        pixels, grid = pixels.swapaxes(0, 1), grid.swapaxes(0, 1)
    return pixels, grid.reshape(len(PLACES), 3)


def to_input(picture: Image.Image) -> NDArray[np.uint8]:
    """Pixels [96, 96, 3], resized as the model's image processor does it."""
    side = (INPUT_SIDE_PX, INPUT_SIDE_PX)
    return np.asarray(picture.resize(side, Image.Resampling.BICUBIC))


def main() -> None:
    """Render a pool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pool = PicturePool(args.folder, args.pictures)
    rng = np.random.default_rng(args.seed)
    for index in range(args.pictures):
        scene = sample_scene(rng)
        pool.pixels[index] = to_input(render(scene, rng))
        pool.labels[index] = to_labels(scene)
        if index % 500 == 499:
            sys.stdout.write(f"\r{index + 1} of {args.pictures} pictures")
            sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
