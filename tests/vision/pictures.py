"""Pictures for the tests, made from a seed."""

import io

import numpy as np
from PIL import Image

from smart_serve.limits import Limits
from vision.image import CheckedImage, check_image


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(picture: Image.Image, name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=name, **options)
    return buffer.getvalue()


def checked(picture: Image.Image, name: str = "PNG", **options: object) -> CheckedImage:
    return check_image(encoded(picture, name, **options), Limits())
