"""Pictures inside a request as data: URLs (RFC 2397); nothing is ever fetched."""

from __future__ import annotations

import base64
import binascii
import re

import msgspec

from smart_serve.errors import ClientError

_SHAPE = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
_ONLY_DATA = "only data: URLs with base64 data are accepted (data:image/png;base64,...)"


class DataUrl(msgspec.Struct, frozen=True):
    """A decoded data: URL."""

    media_type: str
    """As declared, in lower case; not to be trusted."""
    data: bytes


def parse_data_url(url: str, param: str = "messages") -> DataUrl:
    """Decodes `url` strictly: no white space, no URL-safe alphabet, right padding.

    Errors: ClientError `invalid_image_url` for any other kind of URL, `invalid_base64`.
    """
    shape = _SHAPE.match(url)
    if shape is None:
        raise ClientError(_ONLY_DATA, code="invalid_image_url", param=param)
    try:
        data = base64.b64decode(url[shape.end() :], validate=True)
    except (binascii.Error, ValueError):
        message = "the base64 data of the picture is damaged or cut off"
        raise ClientError(message, code="invalid_base64", param=param) from None
    if not data:
        raise ClientError("the picture is empty", code="invalid_base64", param=param)
    return DataUrl(media_type=shape.group(1).lower(), data=data)
