"""Pictures of every mode and kind that the four formats can hold: whole, cut, and many-framed."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smart_serve.errors import ClientError
from smart_serve.limits import Limits
from tests.vision.pictures import encoded, noise
from vision.image import check_image, decode_image

SIDE_PX = 6


def png_by_hand(color_type: int, depth: int, row: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of equal rows, for what Pillow cannot write; `chunks` stand before the pixels."""
    header = struct.pack(">IIBBBBB", SIDE_PX, SIDE_PX, depth, color_type, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * SIDE_PX)
    pieces = [(b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in pieces
    )


def frames(name: str, count: int = 3) -> bytes:
    buffer = io.BytesIO()
    first, *others = [noise(i, 9, 7) for i in range(count)]
    first.save(buffer, name, save_all=True, append_images=others)
    return buffer.getvalue()


RGB16 = struct.pack(">3H", 200 * 257, 100 * 257, 7 * 257) * SIDE_PX
PALETTE = (b"PLTE", bytes([10, 20, 30, 200, 100, 0]))
GOLDEN = {
    "grey of 1 bit": (png_by_hand(0, 1, b"\xff"), (255, 255, 255)),
    "grey of 2 bits": (png_by_hand(0, 2, b"\xaa\xaa"), (170, 170, 170)),
    "grey of 4 bits": (png_by_hand(0, 4, b"\x33" * 3), (51, 51, 51)),
    "grey and alpha of 16 bits": (
        png_by_hand(4, 16, struct.pack(">2H", 0, 32896) * SIDE_PX),
        (127, 127, 127),
    ),
    "colour of 16 bits": (png_by_hand(2, 16, RGB16), (200, 100, 7)),
    "colour and alpha of 16 bits": (
        png_by_hand(6, 16, struct.pack(">4H", 65535, 0, 0, 0) * SIDE_PX),
        (255, 255, 255),
    ),
    "palette of 1 bit": (png_by_hand(3, 1, b"\xff", PALETTE), (200, 100, 0)),
    "palette, half transparent": (
        png_by_hand(3, 8, b"\1" * SIDE_PX, PALETTE, (b"tRNS", b"\xff\x80")),
        (227, 177, 127),
    ),
}
CORPUS = {
    **{name: data for name, (data, _) in GOLDEN.items()},
    "interlaced": encoded(noise(1, 9, 7), "PNG", interlace=1),
    "progressive": encoded(noise(2, 9, 7), "JPEG", progressive=True),
    "grey jpeg": encoded(noise(3, 9, 7).convert("L"), "JPEG"),
    "cmyk": encoded(noise(4, 9, 7).convert("CMYK"), "JPEG"),
    "lossless": encoded(noise(5, 9, 7), "WEBP", lossless=True),
    "alpha": encoded(noise(6, 9, 7).convert("RGBA"), "WEBP"),
    "transparent gif": encoded(noise(7, 9, 7).convert("P"), "GIF", transparency=0),
    **{f"animated {name}": frames(name) for name in ("GIF", "WEBP", "PNG")},
    "several in one jpeg": frames("MPO"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_pixels(name: str) -> None:
    data, golden = GOLDEN[name]
    found = np.asarray(decode_image(check_image(data, Limits())), np.int64)
    assert np.abs(found - golden).max() <= 1


@pytest.mark.parametrize("name", CORPUS)
def test_cut_at_any_byte_it_is_refused_or_a_picture(name: str) -> None:
    data = CORPUS[name]
    size = decode_image(check_image(data, Limits())).size
    refused = 0
    for end in range(len(data)):
        try:
            assert decode_image(check_image(data[:end], Limits())).size == size
        except ClientError:
            refused += 1
    assert refused > 20  # control: cutting does damage


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(CORPUS)),
    other=st.sampled_from(sorted(CORPUS)),
    cuts=st.lists(
        st.tuples(st.integers(0, 4000), st.integers(0, 40), st.binary(max_size=8)), max_size=4
    ),
    tail=st.integers(0, 4000),
)
def test_changed_and_spliced_it_is_refused_or_a_picture_of_its_header(
    name: str, other: str, cuts: list[tuple[int, int, bytes]], tail: int
) -> None:
    data = CORPUS[name]
    for at, removed, put in cuts:
        at %= len(data)
        data = data[:at] + put + data[at + removed :]
    data += CORPUS[other][tail:]
    with contextlib.suppress(ClientError):  # any other error fails the test
        image = check_image(data, Limits(max_image_pixels=100_000))
        assert decode_image(image).size == image.upright_size_px
