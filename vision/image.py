"""From bytes that a stranger sent to an RGB picture, in two steps.

`check_image` reads the header only and refuses what is too big; `decode_image` decodes later, in
the process that owns the vision tower. Whatever goes wrong is a ClientError in our own words.
"""

from __future__ import annotations

import hashlib
import io

import msgspec
import numpy as np
from PIL import ExifTags, Image

from smart_serve.errors import ClientError
from smart_serve.limits import Limits
from vision.header import read_header, sniff_format
from vision.orientation import UPRIGHT, read_orientation

MAX_ASPECT = 200
"""Longest over shortest side, exclusive; Qwen2-VL's own resize refuses more."""
_TYPES = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of each EXIF orientation upright."""
_FIRST_SIDEWAYS = 5
"""Orientations from here on exchange width and height."""
_ACCEPTED = "PNG, JPEG, WebP and GIF pictures are accepted"


class CheckedImage(msgspec.Struct, frozen=True):
    """An encoded picture whose header passed the limits; its pixels are not decoded yet."""

    data: bytes
    format: str
    """PNG, JPEG, WEBP or GIF."""
    width_px: int
    height_px: int
    """By the header, before any EXIF rotation."""
    content_hash: str
    """SHA-256 in hex: of `data`, or of the pixels for a picture that came as pixels."""
    orientation: int = UPRIGHT
    """EXIF's, 1 to 8."""

    @property
    def upright_size_px(self) -> tuple[int, int]:
        """Width and height of what `decode_image` gives."""
        if self.orientation >= _FIRST_SIDEWAYS:
            return self.height_px, self.width_px
        return self.width_px, self.height_px


def check_image(data: bytes, limits: Limits, claimed_type: str | None = None) -> CheckedImage:
    """Checks format and size without decoding a pixel.

    `claimed_type`: the MIME type that the client named, if any; a lie is refused.
    Errors: ClientError (`unsupported_image_format`, `image_type_mismatch`, `image_too_large`,
    `invalid_image`).
    """
    if len(data) > limits.max_image_bytes:
        raise _too_large(f"{len(data)} bytes; the limit is {limits.max_image_bytes}")
    name = sniff_format(data)
    if name is None:
        message = f"the data is not a picture of a known format; {_ACCEPTED}"
        raise ClientError(message, code="unsupported_image_format", param="messages")
    if claimed_type is not None and _TYPES.get(claimed_type.lower()) != name:
        message = f"the data is a {name} picture, but another type was declared; {_ACCEPTED}"
        raise ClientError(message, code="image_type_mismatch", param="messages")
    header = read_header(data)
    if header is None:
        raise _invalid()
    _check_size(header.width_px, header.height_px, limits)
    digest = hashlib.sha256(data).hexdigest()
    turn = read_orientation(data, header.format)
    return CheckedImage(data, header.format, header.width_px, header.height_px, digest, turn)


def image_from_pil(picture: Image.Image, limits: Limits | None = None) -> CheckedImage:
    """A Pillow picture as PNG, without loss, under the same limits and the same conversions.

    Equal pixels give equal hashes, whatever the encoder does.
    """
    _check_size(*picture.size, limits or Limits())
    rgb = _as_rgb(picture, None)
    buffer = io.BytesIO()
    rgb.save(buffer, format="PNG", compress_level=1)
    digest = hashlib.sha256(f"rgb {rgb.width} {rgb.height} ".encode() + rgb.tobytes()).hexdigest()
    return CheckedImage(buffer.getvalue(), "PNG", rgb.width, rgb.height, digest)


def decode_image(image: CheckedImage) -> Image.Image:
    """The picture as upright RGB on white; of an animation the first frame.

    Errors: ClientError `invalid_image`.
    """
    # A lock-free stand-in for turning Pillow's bomb warning into an error, which is process-wide.
    if image.width_px * image.height_px > (Image.MAX_IMAGE_PIXELS or 0):
        raise _too_large("more pixels than the decoder allows")
    # `load` accepts files cut near the end that `verify` refuses, and the other way round.
    try:
        with Image.open(io.BytesIO(image.data), formats=[image.format]) as picture:
            picture.verify()
        with Image.open(io.BytesIO(image.data), formats=[image.format]) as picture:
            # GIF frames may reach past the size that the header declared and was checked.
            if picture.size != (image.width_px, image.height_px):
                raise _invalid()
            return _as_rgb(picture, image.orientation)
    except ClientError:
        raise
    except Exception:  # Pillow's decoders raise a dozen unrelated types; their texts leak addresses
        raise _invalid() from None


def _as_rgb(picture: Image.Image, orientation: int | None) -> Image.Image:
    """`orientation` None: as the picture itself knows it."""
    try:
        picture.load()
        if orientation is None:
            orientation = picture.getexif().get(ExifTags.Base.Orientation)
        turn = _TURNS.get(orientation or UPRIGHT)
        upright = picture if turn is None else picture.transpose(turn)
        if upright.mode.startswith("I"):
            return _from_16_bit(upright)
        if upright.mode == "F":
            message = "floating-point pictures have no defined range; convert to 8 bits first"
            raise ClientError(message, code="invalid_image", param="messages")
        if upright.has_transparency_data or upright.mode in ("RGBa", "La"):
            rgba = upright.convert("LA" if upright.mode == "La" else "RGBA").convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            return Image.alpha_composite(white, rgba).convert("RGB")
        return upright.convert("RGB")
    except ClientError:
        raise
    except Exception:  # as in decode_image: a lazily opened picture is decoded only here
        raise _invalid() from None


def _from_16_bit(picture: Image.Image) -> Image.Image:
    """Scales 0..65535 to 0..255; Pillow's own conversion clips and keeps 2 of 256 levels."""
    levels = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
    grey = ((levels * 255 + 32767) // 65535).astype(np.uint8)
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey[levels == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _check_size(width_px: int, height_px: int, limits: Limits) -> None:
    if width_px < 1 or height_px < 1:
        raise _invalid()
    if width_px * height_px > limits.max_image_pixels:
        raise _too_large(f"{width_px} x {height_px} pixels; the limit is {limits.max_image_pixels}")
    longest, shortest = max(width_px, height_px), min(width_px, height_px)
    if longest > limits.max_image_side_px:
        raise _too_large(f"a side of {longest} pixels; the limit is {limits.max_image_side_px}")
    if longest >= MAX_ASPECT * shortest:
        message = f"the picture's sides differ by a factor of {MAX_ASPECT} or more"
        raise ClientError(message, code="invalid_image", param="messages")


def _invalid() -> ClientError:
    message = "the picture is damaged or incomplete and cannot be decoded"
    return ClientError(message, code="invalid_image", param="messages")


def _too_large(what: str) -> ClientError:
    return ClientError(
        f"the picture is too large: {what}", code="image_too_large", param="messages"
    )
