"""Log-probabilities of an answer's tokens, in the shapes of both completions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from smart_serve.frontend.tokenizer import TextTokenizer
from smart_serve.messages import TokenChunk

_LEAST = -9999.0
"""What the API gives for what is next to impossible; JSON has no infinity."""


class TopLogprob(msgspec.Struct, frozen=True):
    """One token at its place."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    """Of its text: a token may be part of a character."""


class TokenLogprobs(msgspec.Struct, frozen=True):
    """One token of the answer and its likeliest rivals."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[TopLogprob, ...]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Of a chat: every token that has a text, a stop string's included."""

    content: tuple[TokenLogprobs, ...]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    """Of a text completion: one entry a token in each list."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...]
    text_offset: tuple[int, ...]
    """Where the token begins in the answer, in characters."""


def score(chunk: TokenChunk, tokenizer: TextTokenizer) -> tuple[TokenLogprobs, ...]:
    """What a chunk tells of its tokens; empty if nobody asked. Special tokens have no text."""
    if not chunk.logprobs:
        return ()
    scored = []
    for token, told in zip(chunk.token_ids, chunk.logprobs, strict=True):
        if token in tokenizer.special_ids:
            continue
        own = _top(tokenizer, token, told.logprob)
        rivals = tuple(_top(tokenizer, rival, logprob) for rival, logprob in told.top)
        scored.append(TokenLogprobs(own.token, own.logprob, own.bytes, rivals))
    return tuple(scored)


def text_logprobs(scores: Sequence[TokenLogprobs], offset: int) -> TextLogprobs:
    """`offset`: where the first of them begins."""
    offsets = []
    for one in scores:
        offsets.append(offset)
        offset += len(one.token)
    return TextLogprobs(
        tokens=tuple(one.token for one in scores),
        token_logprobs=tuple(one.logprob for one in scores),
        top_logprobs=tuple({top.token: top.logprob for top in one.top_logprobs} for one in scores),
        text_offset=tuple(offsets),
    )


def _top(tokenizer: TextTokenizer, token: int, logprob: float) -> TopLogprob:
    data = tokenizer.token_bytes(token)
    return TopLogprob(data.decode("utf-8", "replace"), max(logprob, _LEAST), tuple(data))
