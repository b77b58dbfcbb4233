"""A stream cut after any event and begun again after it is the whole stream, to the character."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_serve.errors import ClientError, ServerError
from smart_serve.frontend.detokenizer import Detokenizer
from smart_serve.frontend.tokenizer import TextTokenizer
from smart_serve.messages import RequestStats, TokenChunk
from smart_serve.openai.answer import AnswerHead
from smart_serve.openai.merge import merged
from smart_serve.openai.respond import Tally, sse_answer, text_news
from smart_serve.openai.shapes import AnswerShape, ChatShape, TextNews, TextShape
from smart_serve.openai.stream_position import Place, StreamPosition
from smart_serve.openai.usage import UsageEvents
from tests.frontend.tokenizers_under_test import loaded, sentencepiece_like

HEAD = AnswerHead(id="chatcmpl-" + "a" * 24, model="m", created=1)
SHAPES: tuple[AnswerShape, ...] = (ChatShape(HEAD), TextShape(HEAD))
STATS = RequestStats(prompt_tokens=2, completion_tokens=3)


def _bytes_tokenizer() -> TextTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return loaded(sentencepiece_like("first")[0], Path(folder))


# Every byte is a token, so that characters are cut between tokens.
TOKENIZER = _bytes_tokenizer()
TEXTS = st.text("ab é漢🟥.", max_size=20)
SIZES = st.lists(st.integers(1, 4), max_size=12)


def ids_of(text: str) -> list[int]:
    # Three special tokens stand before the bytes.
    return [3 + byte for byte in text.encode()]


async def chunks(text: str, sizes: list[int]) -> AsyncIterator[TokenChunk]:
    ids = ids_of(text)
    for size in sizes:
        if ids:
            yield TokenChunk(token_ids=tuple(ids[:size]), stats=STATS)
            ids = ids[size:]
    yield TokenChunk(token_ids=tuple(ids), finish_reason="length", stats=STATS)


def answer(
    texts: list[str], sizes: list[int], stop: tuple[str, ...] = ()
) -> AsyncGenerator[TextNews]:
    return merged(
        [
            text_news(chunks(text, sizes), Detokenizer(TOKENIZER, stop), index)
            for index, text in enumerate(texts)
        ]
    )


def begin(choices: int) -> StreamPosition:
    return StreamPosition(HEAD.id, -3, (None,) * choices)


async def events(
    shape: AnswerShape,
    news: AsyncIterator[TextNews],
    position: StreamPosition,
    usage: UsageEvents = "last",
) -> list[tuple[str, str | None]]:
    """(data, id) of each event."""
    told = []
    async for event in sse_answer(shape, news, Tally(2), usage, position):
        data, *rest = event.decode().strip().split("\n")
        name = rest[0].removeprefix("id: ") if rest else None
        told.append((data.removeprefix("data: "), name))
    return told


def heard(told: list[tuple[str, str | None]]) -> dict[int, list[object]]:
    """Per choice: its text, and everything else that came, in order."""
    found: dict[int, list[object]] = {}
    for data, _ in told:
        for choice in [] if data == "[DONE]" else json.loads(data)["choices"]:
            entry = found.setdefault(choice["index"], [""])
            delta = choice.get("delta", choice)
            entry[0] = str(entry[0]) + (delta.get("content") or delta.get("text") or "")
            entry += [delta["role"]] if "role" in delta else []
            entry += [choice["finish_reason"]] if choice["finish_reason"] else []
    return found


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    texts=st.lists(TEXTS, min_size=1, max_size=3),
    sizes=SIZES,
    other_sizes=SIZES,
    stop=st.lists(st.text("ab é.", min_size=1, max_size=3), max_size=2).map(tuple),
    data=st.data(),
)
def test_cut_anywhere_nothing_is_lost_or_doubled(
    shape: AnswerShape,
    texts: list[str],
    sizes: list[int],
    other_sizes: list[int],
    stop: tuple[str, ...],
    data: st.DataObject,
) -> None:
    async def check() -> None:
        whole = await events(shape, answer(texts, sizes, stop), begin(len(texts)))
        cut = data.draw(st.integers(1, len(whole) - 1))
        last = whole[cut - 1][1]
        assert last is not None
        # Another tree gives other chunks: the tokens are the same.
        position = StreamPosition.parse(last)
        rest = await events(shape, answer(texts, other_sizes, stop), position)
        assert heard(whole[:cut] + rest) == heard(whole)
        assert rest[-1] == ("[DONE]", None)
        # The figures are of all choices, those that had ended too.
        assert json.loads(rest[-2][0])["usage"]["completion_tokens"] == 3 * len(texts)

    asyncio.run(check())


def test_control_a_client_that_begins_anew_hears_it_twice() -> None:
    async def check() -> None:
        whole = await events(SHAPES[0], answer(["abab"], [1, 1]), begin(1))
        rest = await events(SHAPES[0], answer(["abab"], [1, 1]), begin(1))
        assert heard(whole[:3] + rest) != heard(whole)

    asyncio.run(check())


@pytest.mark.parametrize("other", ["xbab.", "a", "", "ab"])
async def test_an_answer_that_came_out_differently_is_not_spliced(other: str) -> None:
    position = begin(1).moved(0, Place().after("aba"))
    with pytest.raises(ServerError, match="differently"):
        await events(SHAPES[0], answer([other], [1, 1]), position)
    ended = begin(1).moved(0, Place().after("ab", ended=True))
    with pytest.raises(ServerError, match="differently"):
        await events(SHAPES[0], answer(["abab"], [1, 1]), ended)


@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    places=st.lists(st.none() | st.builds(Place().after, TEXTS, st.booleans()), min_size=1),
)
def test_an_id_is_read_as_it_was_written(seed: int, places: list[Place | None]) -> None:
    position = StreamPosition(HEAD.id, seed, tuple(places))
    assert StreamPosition.parse(str(position)) == position
    assert str(position).isascii()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "chatcmpl-" + "a" * 24,
        f"{HEAD.id}.{0:016x}",
        f"{HEAD.id}.{0:016x}.",
        f"{HEAD.id}.{0:017x}.-",
        f"{HEAD.id}.{0:016x}.{10**9}-00000000",
        f"{HEAD.id}.{0:016x}.-1-00000000",
        f"{HEAD.id}.{0:016x}.-\n",
        f"x{HEAD.id}.{0:016x}.-",
    ],
)
def test_another_id_is_refused(text: str) -> None:
    with pytest.raises(ClientError, match="Last-Event-ID"):
        StreamPosition.parse(text)
