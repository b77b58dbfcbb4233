"""A conversation as the chat template wants it: text, and the places where pictures stand."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """A piece of text inside a message."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """The place of the next picture; pictures are counted over the whole conversation."""


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn. `content` keeps the form the client chose, since templates tell them apart."""

    role: Role
    content: str | tuple[TextPart | ImagePart, ...]

    def texts(self) -> tuple[str, ...]:
        """All its pieces of text, in order."""
        if isinstance(self.content, str):
            return (self.content,)
        return tuple(part.text for part in self.content if isinstance(part, TextPart))

    def num_images(self) -> int:
        """Places for pictures."""
        return sum(isinstance(part, ImagePart) for part in self.content)
