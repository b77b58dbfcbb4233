"""Format and size of a picture from its first bytes, before any decoder sees it.

Pillow's own `open` is not enough: its WebP plugin allocates the canvas when it opens a file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

JPEG_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Start-of-frame markers (ITU-T T.81, table B.1); C4, C8 and CC are not frames."""
_JPEG_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""
_JPEG_SCAN = 0xDA
MAX_BLOCKS = 4_096
"""Segments or chunks of one file that are looked at: real files have tens before their pixels."""


class ImageHeader(msgspec.Struct, frozen=True):
    """What the header claims."""

    format: str
    """PNG, JPEG, WEBP or GIF: Pillow's names."""
    width_px: int
    height_px: int


def sniff_format(data: bytes) -> str | None:
    """The format by its magic bytes; None for anything that is not accepted."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return None


def read_header(data: bytes) -> ImageHeader | None:
    """Format and size; None when the bytes are no accepted picture or the header is cut off."""
    name = sniff_format(data)
    if name is None:
        return None
    size = {"PNG": _png_size, "JPEG": _jpeg_size, "WEBP": _webp_size, "GIF": _gif_size}[name](data)
    if size is None or min(size) < 1:
        return None
    return ImageHeader(format=name, width_px=size[0], height_px=size[1])


def _png_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 24 or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 10:
        return None
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte, end) of the segments before the scan; ends early where `data` is cut
    off or wrong."""
    at = 2
    for _ in range(MAX_BLOCKS):
        if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] == _JPEG_SCAN:
            return
        marker, size = struct.unpack_from(">BH", data, at + 1)
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _JPEG_BARE_MARKERS:
            at += 2
        elif size < 2:
            return
        else:
            yield marker, at + 4, at + 2 + size
            at += 2 + size


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    for marker, start, _ in jpeg_segments(data):
        if marker in JPEG_SIZE_MARKERS:
            if start + 5 > len(data):
                return None
            height, width = struct.unpack_from(">HH", data, start + 1)
            return width, height
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        return width, 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None
