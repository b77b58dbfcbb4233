"""Answers in the OpenAI API's shapes, streamed and whole, with faults in our own words."""

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from smart_serve.bundled import TARGET_FOLDER
from smart_serve.errors import ClientError, ConfigError, OverloadedError, ServerError
from smart_serve.frontend.detokenizer import Detokenizer
from smart_serve.frontend.tokenizer import TextTokenizer
from smart_serve.messages import FinishReason, RequestStats, TokenChunk
from smart_serve.openai.answer import AnswerHead, ModelCard, ModelList
from smart_serve.openai.errors import error_response
from smart_serve.openai.respond import TextNews, completion, sse_answer, text_news

TOKENIZER = TextTokenizer.from_folder(TARGET_FOLDER)
HEAD = AnswerHead(id="chatcmpl-1", model="m", created=1)
TEXT = "There are 3 red circles."
STATS = RequestStats(
    prompt_tokens=5,
    completion_tokens=9,
    target_steps=3,
    drafted_tokens=12,
    accepted_tokens=6,
    tree_sizes=(4, 4, 4),
    decode_ms=10.0,
    plain_ms=25.0,
    predicted_ms=12.5,
)


class Source:
    """Chunks of `text`, two tokens each; knows how far it was read."""

    def __init__(self, text: str = TEXT, reason: FinishReason | None = "stop") -> None:
        ids = TOKENIZER.encode(text)
        self.chunks = [TokenChunk(token_ids=tuple(ids[i : i + 2])) for i in range(0, len(ids), 2)]
        if reason is not None:
            error = "the sequence failed" if reason == "error" else None
            last = TokenChunk(token_ids=(), finish_reason=reason, stats=STATS, error=error)
            self.chunks.append(last)
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[TokenChunk]:
        for chunk in self.chunks:
            self.read += 1
            yield chunk


def news(source: Source, stop: tuple[str, ...] = ()) -> AsyncIterator[TextNews]:
    return text_news(aiter(source), Detokenizer(TOKENIZER, stop), prompt_tokens=5)


async def until_fault(stream: AsyncIterator[bytes]) -> tuple[list[bytes], Exception | None]:
    """All events, and what ended them."""
    lines: list[bytes] = []
    try:
        async for event in stream:
            lines.append(event)
    except Exception as fault:
        return lines, fault
    return lines, None


async def events(source: Source, usage: bool = False, stop: tuple[str, ...] = ()) -> list[str]:
    lines = [event.decode() async for event in sse_answer(HEAD, news(source, stop), usage)]
    assert all(line.startswith("data: ") and line.endswith("\n\n") for line in lines)
    return [line.removeprefix("data: ").strip() for line in lines]


async def test_a_whole_answer() -> None:
    answer = await completion(HEAD, news(Source()))
    shape = ChatCompletion.model_validate_json(msgspec.json.encode(answer))
    assert shape.choices[0].message.content == TEXT
    assert shape.choices[0].finish_reason == "stop"
    assert shape.usage is not None
    assert shape.usage.total_tokens == 5 + len(TOKENIZER.encode(TEXT))
    details = shape.usage.completion_tokens_details
    assert details is not None
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (6, 6)
    speculation = answer.usage.speculation
    assert speculation is not None
    assert (speculation.measured_speedup, speculation.predicted_speedup) == (2.5, 2.0)
    assert (speculation.tokens_per_step, speculation.tree_sizes) == (3.0, (4, 4, 4))


async def test_a_streamed_answer_is_the_whole_one_in_pieces() -> None:
    lines = await events(Source(reason="length"))
    assert lines[-1] == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(line) for line in lines[:-1]]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    ends = [chunk.choices[0].finish_reason for chunk in chunks]
    assert ends == [None] * (len(ends) - 1) + ["length"]
    assert not any("usage" in line for line in lines)


async def test_usage_is_streamed_only_when_asked_for() -> None:
    chunks: list[dict[str, Any]] = [
        json.loads(line) for line in (await events(Source(), True))[:-1]
    ]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens"] == 5
    assert chunks[-1]["usage"]["speculation"]["accepted_tokens"] == 6


async def test_a_stop_string_ends_the_answer_and_the_reading() -> None:
    source = Source()
    answer = await completion(HEAD, news(source, stop=("3 red",)))
    assert answer.choices[0].message.content == "There are "
    assert answer.choices[0].finish_reason == "stop"
    assert source.read < len(source.chunks)
    lines = await events(Source(), stop=("3 red",))
    assert "3" not in "".join(
        json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1]
    )


@pytest.mark.parametrize(
    ("reason", "code"),
    [("error", "internal_error"), ("cancelled", "cancelled"), (None, "incomplete_answer")],
)
async def test_a_fault_after_the_start_is_an_event_without_done(
    reason: FinishReason | None, code: str
) -> None:
    lines, fault = await until_fault(sse_answer(HEAD, news(Source(reason=reason)), False))
    assert isinstance(fault, ServerError)
    assert json.loads(lines[-1][6:])["error"]["code"] == code
    assert b"[DONE]" not in b"".join(lines)
    with pytest.raises(ServerError):
        await completion(HEAD, news(Source(reason=reason)))


async def test_a_fault_before_the_first_event_is_raised() -> None:
    with pytest.raises(ServerError, match="sequence failed"):
        await anext(sse_answer(HEAD, news(Source(text="", reason="error")), False))


async def test_a_foreign_fault_does_not_show_its_words() -> None:
    async def broken() -> AsyncIterator[TokenChunk]:
        yield TokenChunk(token_ids=tuple(TOKENIZER.encode("ab")))
        raise RuntimeError("secret /path")

    stream = sse_answer(HEAD, text_news(broken(), Detokenizer(TOKENIZER), 1), False)
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
    value = json.loads(msgspec.json.encode(ModelList((ModelCard(id="m", created=1),))))
    card = {"id": "m", "object": "model", "created": 1, "owned_by": "smart-serve"}
    assert value == {"object": "list", "data": [card]}
