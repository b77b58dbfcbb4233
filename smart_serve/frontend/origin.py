"""Which characters of a rendered prompt come from the request, and which from the template."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence

import msgspec

from smart_serve.errors import ClientError
from smart_serve.frontend.chat import ChatMessage, TextPart

Render = Callable[[Sequence[ChatMessage]], str]


class Piece(msgspec.Struct, frozen=True):
    """A run of the rendered prompt with one origin."""

    text: str
    from_request: bool


def render_pieces(
    render: Render, messages: Sequence[ChatMessage], special: re.Pattern[str]
) -> list[Piece]:
    """Renders `messages` and tells the request's characters from the template's.

    The conversation is rendered twice: as it is, and with each text between two private marks.
    Marks stand inside the text's outer white space, so that a template that trims still trims.
    When the marks come back in order and the texts agree, they show the origin of every character.
    Errors: ClientError `invalid_prompt` when the template changes a text and special tokens appear
    that the request may have spelled.
    """
    plain = render(messages)
    opening, closing = _marks(messages)
    marked = render([_map_texts(message, opening, closing) for message in messages])
    pieces = _split(marked, opening, closing)
    if pieces is not None and "".join(piece.text for piece in pieces) == plain:
        return pieces
    # The template cuts or tests the text (a model's own thoughts, for instance). If harmless texts
    # give the same special tokens, then none of these comes from the request.
    harmless = render([_map_texts(message, "x", "", keep=False) for message in messages])
    if special.findall(harmless) != special.findall(plain):
        message = "the text spells tokens that this model reserves"
        raise ClientError(message, code="invalid_prompt", param="messages")
    return [Piece(text=plain, from_request=False)]


def _marks(messages: Sequence[ChatMessage]) -> tuple[str, str]:
    while True:
        nonce = secrets.token_hex(16)
        opening, closing = f"\ue000{nonce}\ue001", f"\ue002{nonce}\ue003"
        texts = [text for message in messages for text in message.texts()]
        if not any(nonce in text for text in texts):
            return opening, closing


def _map_texts(message: ChatMessage, opening: str, closing: str, keep: bool = True) -> ChatMessage:
    def wrap(text: str) -> str:
        core = text.strip()
        if not core:
            return text
        head, _, tail = text.partition(core)
        return f"{head}{opening}{core if keep else ''}{closing}{tail}"

    if isinstance(message.content, str):
        return ChatMessage(role=message.role, content=wrap(message.content))
    parts = tuple(
        TextPart(text=wrap(part.text)) if isinstance(part, TextPart) else part
        for part in message.content
    )
    return ChatMessage(role=message.role, content=parts)


def _split(marked: str, opening: str, closing: str) -> list[Piece] | None:
    """Pieces between the marks; None when the marks are not in pairs."""
    pieces: list[Piece] = []
    inside = False
    for run in re.split(f"({opening}|{closing})", marked):
        if run in (opening, closing):
            if inside == (run == opening):
                return None
            inside = not inside
        elif run:
            pieces.append(Piece(text=run, from_request=inside))
    return None if inside else pieces
