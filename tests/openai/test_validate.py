"""Every bad request has its own code and names its field; good ones keep their meaning."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_serve.errors import ClientError
from smart_serve.frontend.chat import ChatMessage, ImagePart, TextPart
from smart_serve.limits import Limits
from smart_serve.openai.schema import ChatRequest, CompletionRequest
from smart_serve.openai.validate import (
    ParsedChat,
    ParsedCompletion,
    parse_body,
    parse_chat,
    parse_completion,
)
from tests.openai.bodies import body, data_url, image_part, png, text_part, user

SMALL = Limits(
    max_body_bytes=20_000,
    max_images=2,
    max_image_pixels=1000,
    max_image_bytes=5000,
    max_messages=3,
    max_text_chars=100,
    max_completion_tokens=50,
)


def parse(data: bytes) -> ParsedChat:
    return parse_chat(parse_body(data, ChatRequest, SMALL, "m"), SMALL)


def parse_text(**fields: Any) -> ParsedCompletion:
    data = json.dumps({"model": "m", **fields}).encode()
    return parse_completion(parse_body(data, CompletionRequest, SMALL, "m"), SMALL)


def with_image(url: str) -> bytes:
    return body(messages=user(text_part("what?"), image_part(url)))


def test_a_plain_request_gets_the_apis_defaults() -> None:
    parsed = parse(body())
    options = parsed.options
    assert parsed.conversation.messages == (ChatMessage(role="user", content="hi"),)
    assert (options.sampling.temperature, options.sampling.max_tokens) == (1.0, 50)
    assert (options.max_tokens_given, options.stream, options.usage) == (False, False, "none")
    assert options.num_choices == 1


def test_a_full_request_keeps_its_meaning() -> None:
    parsed = parse(
        body(
            messages=[
                {"role": "developer", "content": "brief"},
                *user(image_part(data_url(png())), text_part("a"), image_part(data_url(png()))),
            ],
            max_completion_tokens=7,
            temperature=0,
            top_p=0.5,
            top_k=3,
            min_p=0.1,
            presence_penalty=-1,
            frequency_penalty=0.5,
            repetition_penalty=1.5,
            logit_bias={"17": -100, "3": 2.5},
            ignore_eos=True,
            logprobs=True,
            top_logprobs=4,
            seed=-4,
            stop=["x", "y"],
            stream=True,
            stream_options={"include_usage": True},
            n=3,
            user="u",
            response_format={"type": "text"},
            metadata={"a": "b"},
            speculation={"policy": "delayed:2,1,1", "verification": "traversal"},
        )
    )
    parts = (ImagePart(), TextPart(text="a"), ImagePart())
    chat, options = parsed.conversation, parsed.options
    assert chat.messages[0] == ChatMessage(role="system", content="brief")
    assert chat.messages[1] == ChatMessage(role="user", content=parts)
    assert [image.width_px for image in chat.images] == [8, 8]
    sampling = options.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.0, 0.5)
    assert (sampling.top_k, sampling.seed, sampling.stop) == (3, -4, ("x", "y"))
    assert (sampling.policy, sampling.verification) == ("delayed:2,1,1", "traversal")
    assert (sampling.min_p, sampling.ignore_eos, sampling.logprobs) == (0.1, True, 4)
    assert parse(body(logprobs=True)).options.sampling.logprobs == 0
    assert parse(body(logprobs=False)).options.sampling.logprobs is None
    assert parse_text(prompt="a", logprobs=3).options.sampling.logprobs == 3
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-1.0, 0.5)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1.5, {17: -100.0, 3: 2.5})
    assert (options.stream, options.usage, options.max_tokens_given) == (True, "last", True)
    assert options.num_choices == 3


def test_an_unasked_limit_fits_the_context_and_an_asked_one_stays() -> None:
    def limit(prompt_tokens: int, **fields: Any) -> int:
        (chosen,) = parse(body(**fields)).options.choices(prompt_tokens, 100)
        return chosen.max_tokens

    assert limit(90) == 10
    assert limit(10) == 50
    assert limit(90, max_tokens=40) == 40


def test_every_choice_has_a_seed_of_its_own() -> None:
    def seeds(**fields: Any) -> list[int | None]:
        return [chosen.seed for chosen in parse(body(n=3, **fields)).options.choices(9, 99)]

    assert seeds(seed=7) == [7, 8, 9]
    assert seeds(seed=2**63 - 1) == [2**63 - 1, -(2**63), -(2**63) + 1]
    assert seeds() == [None, None, None]  # the engine draws them


def test_a_text_completion_takes_texts_and_token_ids() -> None:
    for prompt, parsed in [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        ([[1], "a"], ((1,), "a")),
    ]:
        assert parse_text(prompt=prompt).prompts == parsed


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_field", "prompt"),
        ({"prompt": ""}, "empty_prompt", "prompt"),
        ({"prompt": []}, "empty_prompt", "prompt"),
        ({"prompt": ["a", ""]}, "empty_prompt", "prompt"),
        ({"prompt": [1, "a"]}, "invalid_type", "prompt"),
        ({"prompt": [[1, "a"]]}, "invalid_type", "prompt[0]"),
        ({"prompt": "a" * 101}, "prompt_too_long", "prompt"),
        ({"prompt": ["a"] * 5, "n": 2}, "invalid_value", "prompt"),
        ({"prompt": "a", "echo": True}, "unknown_field", "echo"),
        ({"prompt": "a", "logprobs": 21}, "invalid_request", "logprobs"),
        ({"prompt": "a", "logprobs": True}, "invalid_type", "logprobs"),
        ({"prompt": "a", "messages": []}, "unknown_field", "messages"),
    ],
)
def test_bad_text_completions_are_told_apart(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse_text(**fields)
    assert caught.value.code == code
    assert (caught.value.param or "").startswith(param)


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b'{"model": "\xff"}', "invalid_json", None),
        (b"[" * 15_000, "invalid_type", "body"),
        (body() + b"x", "invalid_json", None),
        (b" " * 20_001, "request_too_large", None),
        (b"3", "invalid_type", "body"),
        (b'{"model": "m"}', "missing_field", "messages"),
        (body(tools=[]), "unknown_field", "tools"),
        (body(logprobs=5), "invalid_type", "logprobs"),
        (body(top_logprobs=2), "invalid_value", "top_logprobs"),
        (body(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
        (body(logprobs=True, top_logprobs=-1), "invalid_value", "top_logprobs"),
        (body(frequency_penalty=2.5), "invalid_request", "frequency_penalty"),
        (body(presence_penalty=-3), "invalid_request", "presence_penalty"),
        (body(repetition_penalty=0), "invalid_request", "repetition_penalty"),
        (body(min_p=1.1), "invalid_request", "min_p"),
        (body(logit_bias={"5": 101}), "invalid_request", "logit_bias"),
        (body(logit_bias={"-5": 1}), "invalid_request", "logit_bias"),
        (body(logit_bias={"a": 1}), "invalid_type", "logit_bias"),
        (body(logit_bias={str(i): 1 for i in range(1025)}), "invalid_value", "logit_bias"),
        (body(messages=[{"role": "user"}]), "missing_field", "messages[0].content"),
        (
            body(messages=[{"role": "user", "content": "a", "x": 1}]),
            "unknown_field",
            "messages[0].x",
        ),
        (body(messages=[{"role": "tool", "content": "a"}]), "invalid_value", "messages[0].role"),
        (body(messages=user({"type": "audio"})), "invalid_value", "messages[0].content[0].type"),
        (body(messages="hi"), "invalid_type", "messages"),
        (body(max_tokens="9"), "invalid_type", "max_tokens"),
        (body(max_tokens=1.5), "invalid_type", "max_tokens"),
        (body(temperature="hot"), "invalid_type", "temperature"),
        (body(stream=1), "invalid_type", "stream"),
        (body(stop=[1]), "invalid_type", "stop[0]"),
        (body(metadata={"a": 1}), "invalid_type", "metadata"),
        (body(model="other"), "model_not_found", "model"),
        (body(messages=[]), "empty_messages", "messages"),
        (body(messages=[{"role": "user", "content": " \n"}]), "empty_prompt", "messages"),
        (body(messages=[{"role": "user", "content": []}]), "empty_prompt", "messages"),
        (body(messages=user(text_part("a")) * 4), "too_many_messages", "messages"),
        (body(messages=user(text_part("a" * 101))), "prompt_too_long", "messages"),
        (body(messages=user(*[image_part("x")] * 3)), "too_many_images", "messages"),
        (
            body(messages=[{"role": "system", "content": [image_part("x")]}]),
            "invalid_image_role",
            "messages",
        ),
        (body(n=9), "invalid_value", "n"),
        (body(n=0), "invalid_value", "n"),
        (
            body(response_format={"type": "json_schema", "json_schema": {"name": "a"}}),
            "unsupported_value",
            "response_format",
        ),
        (body(response_format={}), "missing_field", "response_format.type"),
        (body(max_completion_tokens=0), "invalid_value", "max_completion_tokens"),
        (body(max_tokens=0), "invalid_value", "max_tokens"),
        (body(max_tokens=51), "invalid_value", "max_tokens"),
        (body(max_tokens=10**30), "invalid_value", "max_tokens"),
        (body(max_tokens=3, max_completion_tokens=4), "invalid_value", "max_tokens"),
        (body(temperature=2.1), "invalid_request", "temperature"),
        (body(temperature=-0.1), "invalid_request", "temperature"),
        (body(top_p=0), "invalid_request", "top_p"),
        (body(top_k=-1), "invalid_request", "top_k"),
        (body(top_k=2**31), "invalid_request", "top_k"),
        (body(seed=2**63), "invalid_request", "seed"),
        (body(stop=""), "invalid_request", "stop"),
        (body(stop=["a"] * 5), "invalid_value", "stop"),
        (body(stop="a" * 257), "invalid_value", "stop"),
        (body(stream_options={"include_usage": True}), "invalid_value", "stream_options"),
        (body(speculation={"policy": "magic"}), "invalid_value", "speculation.policy"),
        (body(speculation={"verification": "magic"}), "invalid_value", "speculation.verification"),
        (
            body(speculation={"policy": "smart", "verification": "block"}),
            "invalid_value",
            "speculation.verification",
        ),
        (body(speculation={"tree": 1}), "unknown_field", "speculation.tree"),
    ],
)
def test_bad_requests_are_told_apart(data: bytes, code: str, param: str | None) -> None:
    with pytest.raises(ClientError) as caught:
        parse(data)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.org/x.png", "invalid_image_url"),
        ("file:///x.png", "invalid_image_url"),
        (data_url(png())[:-3], "invalid_base64"),
        (data_url(b"hello"), "unsupported_image_format"),
        (data_url(png(name="JPEG")), "image_type_mismatch"),
        (data_url(png(side=40)), "image_too_large"),
        (data_url(png() + b"x" * 5000), "image_too_large"),
        (data_url(png()[:20]), "invalid_image"),
    ],
)
def test_bad_pictures_are_told_apart_and_located(url: str, code: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse(with_image(url))
    assert caught.value.code == code
    assert caught.value.param == "messages[0].content[1].image_url.url"
    assert caught.value.status == 400


def test_statuses() -> None:
    for data, status in [(body(model="x"), 404), (b" " * 20_001, 413), (b"", 400)]:
        with pytest.raises(ClientError) as caught:
            parse(data)
        assert caught.value.status == status


KEYS = ("model", "messages", "max_tokens", "stop", "n", "seed", "stream", "metadata", "top_p", "z")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("role", "content", "type", "text", "url")), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(KEYS), VALUES), good=st.booleans())
def test_no_body_raises_anything_but_a_client_error(fields: dict[str, Any], good: bool) -> None:
    data = body(**fields) if good else json.dumps(fields).encode()
    try:
        parsed = parse(data)
    except ClientError as error:
        status, text = error.status, error.message
    else:
        status, text = 200, parsed.options.sampling.policy or ""
    assert status in (200, 400, 404, 413)
    assert "`" not in text  # msgspec quotes so; we do not
