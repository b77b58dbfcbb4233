"""From the engine's tokens to the client's answer, streamed or whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from smart_serve.errors import ServerError
from smart_serve.frontend.detokenizer import Detokenizer
from smart_serve.messages import TokenChunk
from smart_serve.openai.answer import (
    AnswerEnd,
    AnswerHead,
    AssistantMessage,
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    Delta,
)
from smart_serve.openai.errors import error_response
from smart_serve.openai.sse import DONE, sse_event
from smart_serve.openai.usage import Usage, build_usage


class TextNews(msgspec.Struct, frozen=True):
    """Text that is safe to show; the last one of an answer carries its end and its usage."""

    text: str
    end: AnswerEnd | None = None
    usage: Usage | None = None


async def text_news(
    chunks: AsyncIterator[TokenChunk], detokenizer: Detokenizer, prompt_tokens: int
) -> AsyncGenerator[TextNews]:
    """Turns tokens into text and ends at the first stop string.

    It does not close `chunks`: the caller owns that iterator, and closing it is what frees the
    sequence after a stop string. Errors: ServerError when the engine failed or ended too early.
    """
    tokens = accepted = 0
    async for chunk in chunks:
        tokens += len(chunk.token_ids)
        accepted += chunk.num_accepted
        end = _end(chunk)
        text = detokenizer.push(chunk.token_ids)
        if end is not None:
            text += detokenizer.flush()
        if detokenizer.finished_by_stop:
            end = "stop"
        if end is not None:
            usage = build_usage(prompt_tokens, tokens, accepted, chunk.stats)
            yield TextNews(text=text, end=end, usage=usage)
            return
        if text:
            yield TextNews(text=text)
    raise ServerError("the answer ended before it was complete", code="incomplete_answer")


async def completion(head: AnswerHead, news: AsyncIterator[TextNews]) -> ChatCompletion:
    """The whole answer. Errors: those of `text_news`."""
    texts: list[str] = []
    async for item in news:
        texts.append(item.text)
        if item.end is not None and item.usage is not None:
            choice = Choice(AssistantMessage("".join(texts)), item.end)
            return ChatCompletion(
                id=head.id,
                created=head.created,
                model=head.model,
                choices=(choice,),
                usage=item.usage,
            )
    raise ServerError("the answer ended before it was complete", code="incomplete_answer")


async def sse_answer(
    head: AnswerHead, news: AsyncIterator[TextNews], include_usage: bool
) -> AsyncGenerator[bytes]:
    """The events of a streamed answer, `[DONE]` at its good end.

    An error before the first event is raised: a caller that awaits the first event before it sends
    headers can still answer with a status. Afterwards an error is told as an event, without
    `[DONE]`, and then raised for the caller's log.
    """
    pending = None if include_usage else msgspec.UNSET

    def event(*choices: ChunkChoice, usage: Usage | msgspec.UnsetType | None = pending) -> bytes:
        chunk = ChatChunk(
            id=head.id, created=head.created, model=head.model, choices=choices, usage=usage
        )
        return sse_event(chunk)

    started = False
    try:
        async for item in news:
            if not started:
                started = True
                yield event(ChunkChoice(Delta(role="assistant", content="")))
            if item.text:
                yield event(ChunkChoice(Delta(content=item.text)))
            if item.end is not None:
                yield event(ChunkChoice(Delta(), finish_reason=item.end))
                if include_usage:
                    yield event(usage=item.usage)
        yield DONE
    except Exception as error:
        if started:
            yield sse_event(error_response(error)[1])
        raise


def _end(chunk: TokenChunk) -> AnswerEnd | None:
    if chunk.finish_reason == "error":
        raise ServerError(chunk.error or "the engine could not finish this answer")
    if chunk.finish_reason == "cancelled":
        raise ServerError("the request was cancelled", code="cancelled", status=499)
    return chunk.finish_reason
