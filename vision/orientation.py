"""Which way up a picture is, by the EXIF block in its standard place, without any decoder.

Read once, from the bytes, and applied when the picture is decoded: the size that the prompt was
built for and the picture that the tower sees can then not differ.
"""

from __future__ import annotations

import struct

from vision.header import JPEG_SIZE_MARKERS, MAX_BLOCKS, jpeg_segments

UPRIGHT = 1
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_EXIF = b"Exif\0\0"
_JPEG_APPLICATION_1 = 0xE1


def read_orientation(data: bytes, name: str) -> int:
    """EXIF orientation 1 to 8 of a PNG, JPEG or WEBP; 1 where it tells none.

    `data` may be cut off or damaged.
    """
    finder = _FINDERS.get(name)
    try:
        block = finder(data) if finder is not None else None
        return UPRIGHT if block is None else _orientation(block.removeprefix(_EXIF))
    except struct.error:  # past the end
        return UPRIGHT


def _orientation(tiff: bytes) -> int:
    """From the first directory of a TIFF block (EXIF 2.3, section 4.5.2 and 4.6.4)."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return UPRIGHT
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(count):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
        if tag == _ORIENTATION_TAG:
            return value if kind == _SHORT and 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


def _jpeg_exif(data: bytes) -> bytes | None:
    for marker, start, end in jpeg_segments(data):
        if marker in JPEG_SIZE_MARKERS:
            return None
        if marker == _JPEG_APPLICATION_1 and data.startswith(_EXIF, start):
            return data[start:end]
    return None


def _png_exif(data: bytes) -> bytes | None:
    at = 8
    for _ in range(MAX_BLOCKS):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            return data[at + 8 : at + 8 + size]
        at += 12 + size
    return None


def _webp_exif(data: bytes) -> bytes | None:
    at = 12
    for _ in range(MAX_BLOCKS):
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    return None


_FINDERS = {"PNG": _png_exif, "JPEG": _jpeg_exif, "WEBP": _webp_exif}
