"""The size that a prompt is built for is the size of the picture that the tower sees."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.vision.pictures import checked, encoded, noise
from vision.header import MAX_BLOCKS
from vision.image import decode_image, image_from_pil
from vision.orientation import read_orientation

FORMATS = ("PNG", "JPEG", "WEBP")


def exif(orientation: int, endian: str = "<") -> Image.Exif:
    block = Image.Exif()
    block.endian = endian
    block[0x010E] = "made for a test"
    block[0x0112] = orientation
    return block


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("endian", ["<", ">"])
def test_every_orientation_is_applied_and_foretold(
    name: str, orientation: int, endian: str
) -> None:
    options = {"lossless": True} if name == "WEBP" else {}
    image = checked(noise(3, 30, 20), name, exif=exif(orientation, endian), **options)
    found = decode_image(image)
    assert image.orientation == orientation
    assert found.size == image.upright_size_px == ((30, 20) if orientation < 5 else (20, 30))
    with Image.open(io.BytesIO(image.data)) as picture:
        assert np.array_equal(np.asarray(found), np.asarray(ImageOps.exif_transpose(picture)))


def test_pictures_in_process_are_turned_as_they_say() -> None:
    picture = noise(3, 30, 20)
    picture.getexif()[0x0112] = 6
    image = image_from_pil(picture)
    assert (image.width_px, image.height_px, image.orientation) == (20, 30, 1)
    assert decode_image(image).size == image.upright_size_px


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_orientations_that_do_not_exist_are_upright(orientation: int) -> None:
    data = bytearray(encoded(noise(3, 30, 20), "PNG", exif=exif(8)))
    at = data.index(struct.pack("<HHIH", 0x0112, 3, 1, 8))
    assert read_orientation(bytes(data), "PNG") == 8
    data[at + 8 : at + 10] = struct.pack("<H", orientation)
    assert read_orientation(bytes(data), "PNG") == 1


@pytest.mark.parametrize("name", FORMATS)
def test_cut_and_damaged_files_are_read_without_errors(name: str) -> None:
    data = encoded(noise(3, 9, 7), name, exif=exif(6))
    rng = np.random.default_rng(2)
    for end in range(len(data)):
        assert read_orientation(data[:end], name) in (1, 6)
    for _ in range(500):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 4):
            damaged[place] = rng.integers(0, 256)
        assert 1 <= read_orientation(bytes(damaged), name) <= 8


@pytest.mark.parametrize(("count", "orientation"), [(100, 6), (MAX_BLOCKS, 1)])
def test_a_file_of_endless_segments_is_given_up(count: int, orientation: int) -> None:
    data = encoded(noise(3, 9, 7), "JPEG", exif=exif(6))
    padded = data[:2] + b"\xff\xe0\0\2" * count + data[2:]
    assert read_orientation(padded, "JPEG") == orientation
