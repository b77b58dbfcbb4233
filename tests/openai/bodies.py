"""Request bodies for the tests."""

import base64
import io
import json
from typing import Any

from PIL import Image


def png(color: str = "red", side: int = 8, name: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, format=name)
    return buffer.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def body(**fields: Any) -> bytes:
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return json.dumps(request).encode()
