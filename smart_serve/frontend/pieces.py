"""The bytes that a vocabulary's entries stand for, in the two notations that tokenizers use."""

from __future__ import annotations

from typing import Any

_SPACE = "\u2581"
"""SentencePiece's mark of a space."""


def is_byte_level(decoder: dict[str, Any] | None) -> bool:
    """Whether tokenizer.json's `decoder` reads GPT-2's notation of bytes as characters."""
    if decoder is None:
        return False
    parts = decoder.get("decoders", [decoder])
    return any(part.get("type") == "ByteLevel" for part in parts)


def _byte_of_char() -> dict[str, int]:
    """GPT-2's table: bytes that print well stand for themselves, the others for the characters
    from U+0100 on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


def piece_bytes(piece: str, byte_level: bool) -> bytes:
    """The bytes of an entry that is neither special nor a single byte (`<0x0A>`)."""
    if byte_level and all(char in _BYTE_OF_CHAR for char in piece):
        return bytes(_BYTE_OF_CHAR[char] for char in piece)
    return piece.replace(_SPACE, " ").encode()
