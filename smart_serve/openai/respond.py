"""From the engine's tokens to the client's answer, streamed or whole."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence

import msgspec
from msgspec import UNSET

from smart_serve.errors import ServerError
from smart_serve.frontend.detokenizer import Detokenizer
from smart_serve.messages import RequestStats, TokenChunk
from smart_serve.openai.answer import AnswerEnd, StreamedUsage
from smart_serve.openai.errors import error_response
from smart_serve.openai.logprobs import TokenLogprobs, score
from smart_serve.openai.shapes import AnswerShape, ChoiceText, TextNews
from smart_serve.openai.sse import DONE, sse_event
from smart_serve.openai.stream_position import Place, StreamPosition, missing
from smart_serve.openai.trace import speculation_news
from smart_serve.openai.usage import Usage, UsageEvents, build_usage


class Tally:
    """The figures of the choices that have ended."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self._seen: dict[int, RequestStats] = {}

    def note(self, news: TextNews) -> None:
        so_far = RequestStats(completion_tokens=news.num_tokens)
        self._seen[news.index] = news.stats or so_far

    @property
    def completion_tokens(self) -> int:
        return sum(stats.completion_tokens for stats in self._seen.values())

    def usage(self) -> Usage:
        """Of at least one choice. Of those that go on, only the tokens are known."""
        stats = [self._seen[index] for index in sorted(self._seen)]
        return build_usage(self.prompt_tokens, stats)


async def text_news(
    chunks: AsyncIterator[TokenChunk],
    detokenizer: Detokenizer,
    index: int = 0,
    traced: bool = False,
) -> AsyncGenerator[TextNews]:
    """Turns one choice's tokens into text and ends at the first stop string. `traced`: there is
    news of every step, and tells what the step did.

    It does not close `chunks`: the caller owns that iterator, and closing it is what frees the
    sequence after a stop string. Errors: ServerError when the engine failed or ended too early.
    """
    scores: tuple[TokenLogprobs, ...] | None = None
    offset = num_tokens = 0
    async for chunk in chunks:
        end = _end(chunk)
        num_tokens += len(chunk.token_ids)
        if chunk.logprobs:
            scores = (scores or ()) + score(chunk, detokenizer.tokenizer)
        told = speculation_news(chunk, detokenizer.tokenizer) if traced else UNSET
        text = detokenizer.push(chunk.token_ids)
        if end is not None:
            text += detokenizer.flush()
        if detokenizer.finished_by_stop:
            end = "stop"
        if end is not None:
            yield TextNews(index, text, end, scores, offset, told, chunk.stats, num_tokens)
            return
        if text or traced:
            yield TextNews(index, text, None, scores, offset, told, None, num_tokens)
            if scores is not None:
                # What is held back keeps its scores with it.
                offset += sum(len(one.token) for one in scores)
                scores = ()
    raise ServerError("the answer ended before it was complete", code="incomplete_answer")


async def whole_answer(
    shape: AnswerShape, news: AsyncIterator[TextNews], tally: Tally
) -> msgspec.Struct:
    """The answer in one piece. Errors: those of `text_news`."""
    pieces: dict[int, list[TextNews]] = {}
    async for item in news:
        pieces.setdefault(item.index, []).append(item)
        tally.note(item)
    return shape.whole([_joined(pieces[index]) for index in sorted(pieces)], tally.usage())


async def sse_answer(
    shape: AnswerShape,
    news: AsyncIterator[TextNews],
    tally: Tally,
    usage: UsageEvents,
    position: StreamPosition,
) -> AsyncGenerator[bytes]:
    """The events of a streamed answer from `position` on, `[DONE]` at its good end.

    An error before the first event is raised: a caller that awaits the first event before it sends
    headers can still answer with a status. Afterwards an error is told as an event, without
    `[DONE]`, and then raised for the caller's log.
    """
    told: StreamedUsage = UNSET if usage == "none" else None
    begun = False
    try:
        async for item in missing(news, position):
            tally.note(item)
            if usage == "every":
                told = tally.usage()
            for event, place in _events(shape, item, position.places[item.index], told):
                position = position.moved(item.index, place)
                begun = True
                yield sse_event(event, str(position))
        if usage != "none":
            yield sse_event(shape.closing(tally.usage()), str(position))
        yield DONE
    except Exception as error:
        if begun:
            yield sse_event(error_response(error)[1], str(position))
        raise


def _events(
    shape: AnswerShape, item: TextNews, place: Place | None, usage: StreamedUsage
) -> Iterator[tuple[msgspec.Struct, Place]]:
    """The events of news of one choice, and where the choice stands after each."""
    if place is None:
        place = Place()
        for event in shape.opening(item.index, usage):
            yield event, place
    if place.ended:
        return
    events = list(shape.news(item, usage))
    for event in events:
        # The first one has the text, the last one the end.
        text = item.text if event is events[0] else ""
        place = place.after(text, item.end is not None and event is events[-1])
        yield event, place


def _joined(pieces: Sequence[TextNews]) -> ChoiceText:
    scores = [one.scores for one in pieces if one.scores is not None]
    return ChoiceText(
        index=pieces[-1].index,
        text="".join(one.text for one in pieces),
        end=pieces[-1].end,
        scores=tuple(itertools.chain.from_iterable(scores)) if scores else None,
    )


def _end(chunk: TokenChunk) -> AnswerEnd | None:
    if chunk.finish_reason == "error":
        raise ServerError(chunk.error or "the engine could not finish this answer")
    if chunk.finish_reason == "cancelled":
        raise ServerError("the request was cancelled", code="cancelled", status=499)
    return chunk.finish_reason
