"""Small files that would become large: refused, or decoded, without the memory they ask for."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from smart_serve.limits import Limits
from tests.vision.memory_meter import grown_mb
from tests.vision.pictures import encoded, noise

MAX_MB = 64
HUGE = 2**28
"""Bytes that a bomb would unpack to, where its format sets no bound of its own."""


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Grey, 8 bits; `chunks` after the header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pieces = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in pieces
    )


def zeros(count: int) -> bytes:
    """So many packed: about a thousandth of it."""
    packer = zlib.compressobj(9)
    block = bytes(2**20)
    packed = b"".join(packer.compress(block) for _ in range(count // len(block)))
    return packed + packer.compress(bytes(count % len(block))) + packer.flush()


def jpeg(width: int, height: int, **options: object) -> bytes:
    """A small JPEG that claims another size."""
    data = bytearray(encoded(noise(1, 16, 16), "JPEG", **options))
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


def gif(width: int, height: int, frame_width: int, frame_height: int) -> bytes:
    """A GIF whose frame says its own size."""
    data = bytearray(encoded(noise(1, 8, 8).convert("P"), "GIF"))
    struct.pack_into("<HH", data, 6, width, height)
    at = data.index(b"\x2c\0\0\0\0\x08\0\x08\0")
    struct.pack_into("<HH", data, at + 5, frame_width, frame_height)
    return bytes(data)


def webp(canvas: tuple[int, int] | None, inner: tuple[int, int]) -> bytes:
    """Lossless, claiming `inner`; `canvas`: in an extended file that claims that."""
    data = bytearray(encoded(noise(1, 8, 8), "WEBP", lossless=True))
    bits = struct.unpack_from("<I", data, 21)[0] >> 28 << 28
    struct.pack_into("<I", data, 21, bits | (inner[1] - 1) << 14 | (inner[0] - 1))
    if canvas is not None:
        sizes = b"".join((side - 1).to_bytes(3, "little") for side in canvas)
        data[12:12] = b"VP8X" + struct.pack("<I4x", 10) + sizes
        struct.pack_into("<I", data, 4, len(data) - 8)
    return bytes(data)


def frames(name: str) -> bytes:
    colors = [Image.new("RGB", (1000, 1000), (5 * i, i, 9)) for i in range(50)]
    buffer = io.BytesIO()
    colors[0].save(buffer, name, save_all=True, append_images=colors[1:])
    return buffer.getvalue()


PIXELS = (b"IDAT", zlib.compress(b"\0" + bytes(8) * 8))
TIFF = b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x0e\0\x02\xff\xff\xff\xff\0\0\0\x08" * 5000
BOMBS = {
    "PNG of 169 Mpx": png(13_000, 13_000, (b"IDAT", zeros(13_001 * 13_000))),
    "PNG of the largest size": png(2**31 - 1, 2**31 - 1, PIXELS),
    "PNG with more pixels than it says": png(8, 8, (b"IDAT", zeros(HUGE))),
    "PNG with a long text": png(8, 8, (b"zTXt", b"a\0\0" + zeros(HUGE)), PIXELS),
    "PNG with many texts": png(8, 8, *[(b"zTXt", b"a\0\0" + zeros(2**20))] * 200, PIXELS),
    "PNG with a large profile": png(8, 8, (b"iCCP", b"a\0\0" + zeros(HUGE)), PIXELS),
    "PNG with a wild EXIF block": png(8, 8, (b"eXIf", TIFF), PIXELS),
    "JPEG of 4 Gpx": jpeg(65_500, 65_500),
    "JPEG of 4 Gpx, progressive": jpeg(65_500, 65_500, progressive=True),
    "JPEG with a wild EXIF block": encoded(noise(1), "JPEG", exif=b"Exif\0\0" + TIFF[:60_000]),
    "JPEG with two sizes": jpeg(8, 8)[:-2] + jpeg(65_500, 65_500)[2:],
    "GIF of 4 Gpx": gif(65_535, 65_535, 65_535, 65_535),
    "GIF with a frame of 4 Gpx": gif(8, 8, 65_535, 65_535),
    "WebP of 268 Mpx": webp(None, (16_384, 16_384)),
    "WebP of 268 Mpx behind a small canvas": webp((8, 8), (16_384, 16_384)),
    "WebP with the largest canvas": webp((2**24, 2**24), (8, 8)),
    **{f"{name} of 50 frames": frames(name) for name in ("GIF", "WEBP", "PNG", "MPO")},
}


CONTROL = encoded(Image.new("RGB", (7000, 4500), "red"))


@pytest.fixture(scope="module")
def seen() -> dict[str, tuple[float, str]]:
    *grown, control = grown_mb([*BOMBS.values(), CONTROL])
    assert control[0] > MAX_MB  # the meter sees a large picture
    assert control[1] == "7000x4500"
    return dict(zip(BOMBS, grown, strict=True))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little_memory(name: str, seen: dict[str, tuple[float, str]]) -> None:
    assert len(BOMBS[name]) < Limits().max_image_bytes
    grown, outcome = seen[name]
    print(f"{name}: {len(BOMBS[name])} bytes, +{grown:.1f} MB, {outcome}")
    assert grown < MAX_MB
