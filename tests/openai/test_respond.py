"""Answers in the OpenAI API's shapes, streamed and whole, with faults in our own words."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from smart_serve.bundled import TARGET_FOLDER
from smart_serve.errors import ClientError, ConfigError, OverloadedError, ServerError
from smart_serve.frontend.detokenizer import Detokenizer
from smart_serve.frontend.tokenizer import TextTokenizer
from smart_serve.messages import FinishReason, RequestStats, TokenChunk
from smart_serve.openai.answer import AnswerHead, ModelCard, ModelList, TextCompletion
from smart_serve.openai.errors import error_response
from smart_serve.openai.merge import merged
from smart_serve.openai.respond import Tally, sse_answer, text_news, whole_answer
from smart_serve.openai.shapes import AnswerShape, ChatShape, TextNews, TextShape
from smart_serve.openai.stream_position import StreamPosition
from smart_serve.openai.usage import Usage, UsageEvents

TOKENIZER = TextTokenizer.from_folder(TARGET_FOLDER)
HEAD = AnswerHead(id="chatcmpl-1", model="m", created=1)
TEXT = "There are 3 red circles."
STATS = RequestStats(
    prompt_tokens=5,
    completion_tokens=9,
    cached_tokens=4,
    target_steps=3,
    drafted_tokens=12,
    accepted_tokens=6,
    tree_sizes=(4, 4, 4),
    decode_ms=10.0,
    plain_ms=25.0,
    predicted_ms=12.5,
)


class Source:
    """Chunks of `text`, two tokens each, with stats as the engine gives them where stop strings
    are watched for; knows how far it was read."""

    def __init__(self, text: str = TEXT, reason: FinishReason | None = "stop") -> None:
        ids = TOKENIZER.encode(text)
        self.chunks = [
            TokenChunk(
                token_ids=tuple(ids[i : i + 2]),
                stats=RequestStats(completion_tokens=i + 2, target_steps=i // 2 + 1),
            )
            for i in range(0, len(ids), 2)
        ]
        if reason is not None:
            error = "the sequence failed" if reason == "error" else None
            last = TokenChunk(token_ids=(), finish_reason=reason, stats=STATS, error=error)
            self.chunks.append(last)
        self.read = 0

    async def __aiter__(self) -> AsyncGenerator[TokenChunk]:
        for chunk in self.chunks:
            self.read += 1
            yield chunk


def news(source: Source, stop: tuple[str, ...] = (), index: int = 0) -> AsyncGenerator[TextNews]:
    return text_news(aiter(source), Detokenizer(TOKENIZER, stop), index)


async def whole(source: Source, stop: tuple[str, ...] = ()) -> Any:
    return await whole_answer(ChatShape(HEAD), news(source, stop), Tally(5))


def begin(choices: int = 1) -> StreamPosition:
    return StreamPosition("chatcmpl-" + "0" * 24, 7, (None,) * choices)


def sse(stream: AsyncIterator[TextNews], usage: UsageEvents = "none") -> AsyncIterator[bytes]:
    return sse_answer(ChatShape(HEAD), stream, Tally(5), usage, begin())


async def until_fault(stream: AsyncIterator[bytes]) -> tuple[list[bytes], Exception | None]:
    """All events, and what ended them."""
    lines: list[bytes] = []
    try:
        async for event in stream:
            lines.append(event)
    except Exception as fault:
        return lines, fault
    return lines, None


async def events(
    *streams: AsyncGenerator[TextNews],
    usage: UsageEvents = "none",
    shape: AnswerShape | None = None,
) -> list[str]:
    position = begin(len(streams))
    merged_news = sse_answer(shape or ChatShape(HEAD), merged(streams), Tally(5), usage, position)
    lines = [event.decode() async for event in merged_news]
    assert all(line.startswith("data: ") and line.endswith("\n\n") for line in lines)
    return [data_of(line) for line in lines]


def data_of(event: str) -> str:
    return event.splitlines()[0].removeprefix("data: ")


async def test_a_whole_answer() -> None:
    answer = await whole(Source())
    shape = ChatCompletion.model_validate_json(msgspec.json.encode(answer))
    assert shape.choices[0].message.content == TEXT
    assert shape.choices[0].finish_reason == "stop"
    assert shape.usage is not None
    assert shape.usage.total_tokens == 5 + 9
    assert shape.usage.prompt_tokens_details is not None
    assert shape.usage.prompt_tokens_details.cached_tokens == 4
    details = shape.usage.completion_tokens_details
    assert details is not None
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (6, 6)
    speculation = answer.usage.speculation
    assert speculation is not None
    assert (speculation.measured_speedup, speculation.predicted_speedup) == (2.5, 2.0)
    assert (speculation.tokens_per_step, speculation.tree_sizes) == (3.0, (4, 4, 4))


async def test_a_streamed_answer_is_the_whole_one_in_pieces() -> None:
    lines = await events(news(Source(reason="length")))
    assert lines[-1] == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(line) for line in lines[:-1]]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    ends = [chunk.choices[0].finish_reason for chunk in chunks]
    assert ends == [None] * (len(ends) - 1) + ["length"]
    assert not any("usage" in line for line in lines)


async def test_usage_is_streamed_only_when_asked_for() -> None:
    chunks: list[dict[str, Any]] = [
        json.loads(line) for line in (await events(news(Source()), usage="last"))[:-1]
    ]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens"] == 5
    assert chunks[-1]["usage"]["speculation"]["accepted_tokens"] == 6


async def test_every_event_tells_the_usage_so_far_when_asked_for() -> None:
    streams = [news(Source(), index=i) for i in range(2)]
    *lines, done = await events(*streams, usage="every")
    assert done == "[DONE]"
    counts = [json.loads(line)["usage"]["completion_tokens"] for line in lines]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] == 2 * (await whole(Source())).usage.completion_tokens


async def test_a_stop_string_ends_the_answer_and_the_reading() -> None:
    source = Source()
    answer = await whole(source, stop=("3 red",))
    assert answer.choices[0].message.content == "There are "
    assert answer.choices[0].finish_reason == "stop"
    assert source.read < len(source.chunks)
    assert answer.usage.completion_tokens == 2 * source.read
    assert answer.usage.speculation.target_steps == source.read
    lines = await events(news(Source(), stop=("3 red",)))
    assert "3" not in "".join(
        json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1]
    )


async def test_several_choices_keep_their_texts_apart_and_add_up() -> None:
    texts = ["There are 3 red circles.", "No.", "There is a square."]

    def streams() -> list[AsyncGenerator[TextNews]]:
        return [news(Source(text), index=i) for i, text in enumerate(texts)]

    answer: Any = await whole_answer(ChatShape(HEAD), merged(streams()), Tally(5))
    assert [choice.message.content for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == 3 * STATS.completion_tokens
    assert answer.usage.speculation.tree_sizes == STATS.tree_sizes * 3
    assert answer.usage.speculation.measured_speedup == 2.5
    found = ["", "", ""]
    roles = []
    for line in (await events(*streams()))[:-1]:
        (choice,) = json.loads(line)["choices"]
        found[choice["index"]] += choice["delta"].get("content", "")
        roles += [choice["index"]] if "role" in choice["delta"] else []
    assert (found, sorted(roles)) == (texts, [0, 1, 2])


async def test_a_choice_that_fails_ends_all() -> None:
    long = Source(TEXT * 20)
    streams = [news(Source(reason="error"), index=0), news(long, index=1)]
    with pytest.raises(ServerError, match="sequence failed"):
        await whole_answer(ChatShape(HEAD), merged(streams), Tally(5))
    assert all(stream.ag_frame is None for stream in streams)  # closed


async def test_leaving_early_closes_every_choice() -> None:
    streams = [news(Source(TEXT * 20), index=i) for i in range(3)]
    together = merged(streams)
    await anext(together)
    await together.aclose()
    assert all(stream.ag_frame is None for stream in streams)


async def test_text_completions_have_a_shape_of_their_own() -> None:
    answer = await whole_answer(TextShape(HEAD), news(Source()), Tally(5))
    shape = Completion.model_validate_json(msgspec.json.encode(answer))
    assert (shape.object, shape.choices[0].text) == ("text_completion", TEXT)
    assert shape.choices[0].finish_reason == "stop"
    lines = await events(news(Source()), usage="last", shape=TextShape(HEAD))
    chunks = [msgspec.json.decode(line, type=TextCompletion) for line in lines[:-1]]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == TEXT
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == ()
    assert isinstance(chunks[-1].usage, Usage)


@pytest.mark.parametrize(
    ("reason", "code"),
    [("error", "internal_error"), ("cancelled", "cancelled"), (None, "incomplete_answer")],
)
async def test_a_fault_after_the_start_is_an_event_without_done(
    reason: FinishReason | None, code: str
) -> None:
    lines, fault = await until_fault(sse(news(Source(reason=reason))))
    assert isinstance(fault, ServerError)
    assert json.loads(data_of(lines[-1].decode()))["error"]["code"] == code
    assert b"[DONE]" not in b"".join(lines)
    with pytest.raises(ServerError):
        await whole(Source(reason=reason))


async def test_a_fault_before_the_first_event_is_raised() -> None:
    with pytest.raises(ServerError, match="sequence failed"):
        await anext(sse(news(Source(text="", reason="error"))))


async def test_a_foreign_fault_does_not_show_its_words() -> None:
    async def broken() -> AsyncIterator[TokenChunk]:
        yield TokenChunk(token_ids=tuple(TOKENIZER.encode("ab")))
        raise RuntimeError("secret /path")

    stream = sse(text_news(broken(), Detokenizer(TOKENIZER)))
    lines, fault = await until_fault(stream)
    assert isinstance(fault, RuntimeError)
    assert b"secret" not in b"".join(lines)
    assert b'"internal_error"' in lines[-1]


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (ClientError("a", code="c", param="p"), 400, "invalid_request_error", "c"),
        (ClientError("a", code="model_not_found", status=404), 404, "invalid_request_error", None),
        (OverloadedError("a"), 429, "rate_limit_error", "overloaded"),
        (ServerError("a"), 500, "server_error", "internal_error"),
        (ConfigError("/secret"), 500, "server_error", "internal_error"),
        (KeyError("/secret"), 500, "server_error", "internal_error"),
    ],
)
def test_errors_have_the_apis_shape(
    error: Exception, status: int, kind: str, code: str | None
) -> None:
    found, shape = error_response(error)
    value = json.loads(msgspec.json.encode(shape))["error"]
    assert (found, value["type"]) == (status, kind)
    assert set(value) == {"message", "type", "param", "code"}
    assert code is None or value["code"] == code
    assert "secret" not in value["message"]
    assert value["param"] == ("p" if value["code"] == "c" else None)


def test_the_list_of_models() -> None:
    models = ModelList((ModelCard(id="m", created=1, max_model_len=9),))
    card = {"id": "m", "object": "model", "created": 1, "owned_by": "smart-serve"}
    card["max_model_len"] = 9
    assert json.loads(msgspec.json.encode(models)) == {"object": "list", "data": [card]}
