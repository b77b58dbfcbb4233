"""Pictures of every mode and kind that the four formats can hold: whole, cut, and many-framed."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smart_serve.errors import ClientError
from smart_serve.limits import Limits
from tests.vision.pictures import encoded, noise
from vision.image import check_image, decode_image

ROOT = Path(__file__).resolve().parents[2]
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


def grown_mb(data: bytes) -> float:
    """How much decoding `data` adds to the peak memory of a process of its own."""
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from PIL import Image\n"
        "from smart_serve.limits import Limits\n"
        "from vision.image import check_image, decode_image\n"
        "def peak_kib():\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', status)[1])\n"
        "Image.init()\n"
        "data = sys.stdin.buffer.read()\n"
        "before = peak_kib()\n"
        "decode_image(check_image(data, Limits()))\n"
        "print(peak_kib() - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr.decode()
    return int(run.stdout) / 1024


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "MPO"])
def test_many_frames_cost_no_more_memory_than_one(name: str) -> None:
    colors = [Image.new("RGB", (1000, 1000), (5 * i, i, 9)) for i in range(50)]
    buffer = io.BytesIO()
    colors[0].save(buffer, name, save_all=True, append_images=colors[1:])
    assert grown_mb(buffer.getvalue()) < 64  # all frames decoded: 150 MB


def test_the_memory_meter_sees_a_large_picture() -> None:
    assert grown_mb(encoded(Image.new("RGB", (7000, 4500), "red"))) > 64
