"""Hostile and unusual pictures: limits from the header, golden pixels, one kind of error."""

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smart_serve.errors import ClientError
from smart_serve.limits import Limits
from tests.vision.pictures import checked, encoded, noise
from vision.header import read_header
from vision.image import CheckedImage, check_image, decode_image, image_from_pil

LIMITS = Limits()
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


def png_claiming(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk


def pixel(image: CheckedImage) -> tuple[int, ...]:
    return decode_image(image).getpixel((0, 0))


@pytest.mark.parametrize("name", FORMATS)
def test_the_header_tells_format_and_size(name: str) -> None:
    image = checked(noise(1, 37, 21), name)
    assert (image.format, image.width_px, image.height_px) == (name, 37, 21)
    assert decode_image(image).size == (37, 21)


@pytest.mark.parametrize("options", [{"lossless": True}, {"exact": True, "alpha": True}, {}])
def test_every_kind_of_webp_header_is_read(options: dict[str, bool]) -> None:
    mode = "RGBA" if options.pop("alpha", False) else "RGB"
    header = read_header(encoded(noise(1, 37, 21).convert(mode), "WEBP", **options))
    assert header is not None
    assert (header.width_px, header.height_px) == (37, 21)


def test_progressive_jpeg_with_long_metadata_is_read() -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 30_000
    data = encoded(noise(1, 37, 21), "JPEG", progressive=True, exif=exif)
    header = read_header(data)
    assert header is not None
    assert (header.width_px, header.height_px) == (37, 21)


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_cut_at_any_byte_is_refused_or_decoded(name: str) -> None:
    data = encoded(noise(5, 9, 7), name)
    decoded = 0
    for end in range(len(data)):
        try:
            image = check_image(data[:end], LIMITS)
            decoded += decode_image(image).size == (9, 7)
        except ClientError:
            continue
    assert decode_image(check_image(data, LIMITS)).size == (9, 7)
    assert decoded < len(data) // 2  # control: cutting does damage


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
)
def test_damaged_bytes_raise_client_errors_only(name: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(noise(5, 9, 7), name))
    for place, value in changes:
        data[place % len(data)] = value
    limits = Limits(max_image_pixels=100_000)
    with contextlib.suppress(ClientError):  # any other type fails the test
        decode_image(check_image(bytes(data), limits))


@pytest.mark.parametrize(
    ("data", "limits", "code"),
    [
        (png_claiming(60_000, 60_000), LIMITS, "image_too_large"),
        (png_claiming(17_000, 100), LIMITS, "image_too_large"),
        (png_claiming(200, 1), LIMITS, "invalid_image"),
        (png_claiming(0, 5), LIMITS, "invalid_image"),
        (encoded(noise(1)), Limits(max_image_bytes=100), "image_too_large"),
        (encoded(noise(1)), Limits(max_image_pixels=40 * 30 - 1), "image_too_large"),
        (b"", LIMITS, "unsupported_image_format"),
        (b"hello", LIMITS, "unsupported_image_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", LIMITS, "unsupported_image_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", LIMITS, "unsupported_image_format"),
    ],
)
def test_limits_hold_before_decoding(data: bytes, limits: Limits, code: str) -> None:
    with pytest.raises(ClientError) as caught:
        check_image(data, limits)
    assert caught.value.code == code


def test_limits_are_inclusive() -> None:
    data = encoded(noise(1))
    limits = Limits(max_image_pixels=40 * 30, max_image_bytes=len(data), max_image_side_px=40)
    assert check_image(data, limits).width_px == 40
    assert check_image(png_claiming(199, 1), LIMITS).width_px == 199


def test_a_decompression_bomb_is_refused_without_its_memory() -> None:
    rows = zlib.compress(b"\0" * 13_001 * 100, 9)
    body = b"IDAT" + rows
    data = png_claiming(13_000, 13_000) + struct.pack(">I", len(rows)) + body
    tracemalloc.start()
    with pytest.raises(ClientError):
        check_image(data, LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    generous = Limits(max_image_pixels=10**10, max_image_side_px=10**6)
    with pytest.raises(ClientError):
        decode_image(check_image(data, generous))


def test_a_gif_frame_larger_than_its_header_is_refused() -> None:
    data = bytearray(encoded(noise(1, 40, 30), "GIF"))
    data[6:10] = struct.pack("<HH", 4, 3)
    with pytest.raises(ClientError):
        decode_image(check_image(bytes(data), LIMITS))


@pytest.mark.parametrize("claimed", ["image/jpeg", "image/svg+xml", "text/html", "image/"])
def test_a_wrong_declared_type_is_refused(claimed: str) -> None:
    with pytest.raises(ClientError) as caught:
        check_image(encoded(noise(1)), LIMITS, claimed)
    assert caught.value.code == "image_type_mismatch"


def test_the_right_declared_type_is_accepted() -> None:
    assert check_image(encoded(noise(1)), LIMITS, "image/PNG").format == "PNG"
    assert check_image(encoded(noise(1), "JPEG"), LIMITS, "image/jpg").format == "JPEG"


def palette_with_transparency() -> bytes:
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    return encoded(picture, transparency=0)


@pytest.mark.parametrize(
    ("data", "golden"),
    [
        (encoded(Image.new("1", (4, 4), 1)), (255, 255, 255)),
        (encoded(Image.new("L", (4, 4), 77)), (77, 77, 77)),
        (encoded(Image.new("L", (4, 4), 77), transparency=77), (255, 255, 255)),
        (encoded(Image.new("LA", (4, 4), (0, 0))), (255, 255, 255)),
        (encoded(Image.new("LA", (4, 4), (0, 128))), (127, 127, 127)),
        (encoded(Image.new("RGB", (4, 4), (1, 2, 3))), (1, 2, 3)),
        (encoded(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)), (255, 255, 255)),
        (encoded(Image.new("RGBA", (4, 4), (200, 100, 0, 0))), (255, 255, 255)),
        (encoded(Image.new("RGBA", (4, 4), (200, 100, 0, 255))), (200, 100, 0)),
        (palette_with_transparency(), (255, 255, 255)),
        (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
        (encoded(Image.new("I;16", (4, 4), 32768)), (128, 128, 128)),
        (encoded(Image.new("I;16", (4, 4), 5), transparency=5), (255, 255, 255)),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
def test_golden_pixels_of_every_mode(data: bytes, golden: tuple[int, int, int]) -> None:
    found = pixel(check_image(data, LIMITS))
    assert max(abs(a - b) for a, b in zip(found, golden, strict=True)) <= 1


def test_sixteen_bit_grey_keeps_its_levels() -> None:
    ramp = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16))
    assert len(np.unique(np.asarray(decode_image(checked(ramp))))) == 256
    assert len(np.unique(np.asarray(ramp.convert("RGB")))) < 10  # control: Pillow's own clips


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = noise(3, 30, 40)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    found = decode_image(checked(turned, "PNG", exif=exif))
    assert np.array_equal(np.asarray(found), np.asarray(upright))


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(name: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    options = {"lossless": True} if name == "WEBP" else {}
    frames[0].save(buffer, name, save_all=True, append_images=frames[1:], **options)
    assert pixel(check_image(buffer.getvalue(), LIMITS)) == (255, 0, 0)


def test_pictures_in_process_keep_their_pixels_and_share_hashes() -> None:
    picture = noise(4)
    first, again = image_from_pil(picture), image_from_pil(picture.copy())
    assert first.content_hash == again.content_hash
    assert first.content_hash != image_from_pil(noise(5)).content_hash
    assert np.array_equal(np.asarray(decode_image(first)), np.asarray(picture))


def test_pictures_in_process_are_treated_as_sent_ones() -> None:
    data = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))
    assert pixel(image_from_pil(Image.open(io.BytesIO(data)))) == (255, 255, 255)
    with pytest.raises(ClientError, match="limit"):
        image_from_pil(noise(1), Limits(max_image_pixels=10))
    with pytest.raises(ClientError, match="floating"):
        image_from_pil(Image.new("F", (4, 4), 0.5))
    with pytest.raises(ClientError, match="damaged"):
        image_from_pil(Image.open(io.BytesIO(encoded(noise(1))[:-900])))
