"""The two completions of the API differ in the shape of their answers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from smart_serve.messages import RequestStats
from smart_serve.openai.answer import (
    AnswerEnd,
    AnswerHead,
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    Delta,
    StreamedUsage,
    TextChoice,
    TextCompletion,
)
from smart_serve.openai.logprobs import ChatLogprobs, TokenLogprobs, text_logprobs
from smart_serve.openai.trace import SpeculationNews
from smart_serve.openai.usage import Usage


class ChoiceText(msgspec.Struct, frozen=True):
    """The text of one choice, or news of it; `end` is None while more will come."""

    index: int
    text: str
    end: AnswerEnd | None = None
    scores: tuple[TokenLogprobs, ...] | None = None
    """Of the tokens that the text is made of; None: nobody asked."""
    offset: int = 0
    """Characters of the answer before the first of `scores`."""
    speculation: SpeculationNews | UnsetType = UNSET
    """Of the step that this is news of; unset: nobody asked."""


class TextNews(ChoiceText, frozen=True):
    """Text of one choice that is safe to show; a choice's last one has its end and its stats."""

    stats: RequestStats | None = None
    num_tokens: int = 0
    """Of the choice so far."""


class AnswerShape(Protocol):
    """How one kind of completion is told."""

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> msgspec.Struct:
        """The answer that is not streamed; every choice has its end."""
        ...

    def opening(self, index: int, usage: StreamedUsage) -> Iterable[msgspec.Struct]:
        """Events before a choice's first text."""
        ...

    def news(self, choice: ChoiceText, usage: StreamedUsage) -> Iterable[msgspec.Struct]:
        """Events of a choice's news."""
        ...

    def closing(self, usage: Usage) -> msgspec.Struct:
        """The event of the figures: it has no choices."""
        ...


class ChatShape:
    """/v1/chat/completions."""

    def __init__(self, head: AnswerHead) -> None:
        self._head = head

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> ChatCompletion:
        head = self._head
        told = []
        for choice in choices:
            assert choice.end is not None
            message = AssistantMessage(choice.text)
            told.append(
                ChatChoice(
                    index=choice.index,
                    message=message,
                    finish_reason=choice.end,
                    logprobs=_chat_logprobs(choice),
                )
            )
        return ChatCompletion(
            id=head.id, created=head.created, model=head.model, choices=tuple(told), usage=usage
        )

    def opening(self, index: int, usage: StreamedUsage) -> Iterable[ChatChunk]:
        delta = Delta(role="assistant", content="")
        yield self._chunk(ChatChunkChoice(index=index, delta=delta), usage=usage)

    def news(self, choice: ChoiceText, usage: StreamedUsage) -> Iterable[ChatChunk]:
        if choice.text or choice.scores or choice.speculation is not UNSET:
            news = ChatChunkChoice(
                index=choice.index,
                delta=Delta(content=choice.text),
                logprobs=_chat_logprobs(choice),
                speculation=choice.speculation,
            )
            yield self._chunk(news, usage=usage)
        if choice.end is not None:
            end = ChatChunkChoice(index=choice.index, delta=Delta(), finish_reason=choice.end)
            yield self._chunk(end, usage=usage)

    def closing(self, usage: Usage) -> ChatChunk:
        return self._chunk(usage=usage)

    def _chunk(self, *choices: ChatChunkChoice, usage: StreamedUsage) -> ChatChunk:
        head = self._head
        return ChatChunk(
            id=head.id, created=head.created, model=head.model, choices=choices, usage=usage
        )


class TextShape:
    """/v1/completions."""

    def __init__(self, head: AnswerHead) -> None:
        self._head = head

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> TextCompletion:
        return self._completion(choices, usage)

    def opening(self, index: int, usage: StreamedUsage) -> Iterable[TextCompletion]:
        return ()

    def news(self, choice: ChoiceText, usage: StreamedUsage) -> Iterable[TextCompletion]:
        yield self._completion([choice], usage)

    def closing(self, usage: Usage) -> TextCompletion:
        return self._completion((), usage)

    def _completion(
        self, choices: Sequence[ChoiceText], usage: StreamedUsage = UNSET
    ) -> TextCompletion:
        head = self._head
        return TextCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=tuple(map(_text_choice, choices)),
            usage=usage,
        )


def _chat_logprobs(choice: ChoiceText) -> ChatLogprobs | None:
    return None if choice.scores is None else ChatLogprobs(choice.scores)


def _text_choice(choice: ChoiceText) -> TextChoice:
    scores = choice.scores
    return TextChoice(
        index=choice.index,
        text=choice.text,
        finish_reason=choice.end,
        logprobs=None if scores is None else text_logprobs(scores, choice.offset),
        speculation=choice.speculation,
    )
