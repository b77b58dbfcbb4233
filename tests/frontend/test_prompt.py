"""Prompts are what transformers makes of them, and no text can place a special token."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from smart_serve.bundled import TARGET_FOLDER
from smart_serve.errors import ClientError, ConfigError
from smart_serve.frontend.chat import ChatMessage, ImagePart, TextPart
from smart_serve.frontend.origin import render_pieces
from smart_serve.frontend.prompt import Prompt, PromptBuilder, check_length
from smart_serve.frontend.template import ChatTemplate
from smart_serve.frontend.tokenizer import TextTokenizer
from smart_serve.limits import Limits
from vision.image import CheckedImage, image_from_pil

BUILDER = PromptBuilder.from_folder(TARGET_FOLDER)
TOKENIZER = AutoTokenizer.from_pretrained(TARGET_FOLDER)
IMAGE_ID = 3
SPECIAL = ("<s>", "</s>", "<pad>", "<image>")
FRAGMENTS = (
    *SPECIAL,
    *("<", ">", "/", "s", "<ima", "ge>", "<im", "age>", "imag", "e", "pad", "</", "<<s>", "s>"),
    *("USER: ", "ASSISTANT:", " ", "\n", "\u200b", "\ue000", "\ue003", "é", "漢", "circle", "'"),
)
HOSTILE = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=12).map("".join)


def picture(seed: int) -> CheckedImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return image_from_pil(Image.fromarray(pixels))


def specials_of(prompt: Prompt) -> list[int]:
    inside = {i for s in prompt.image_spans for i in range(s.start, s.start + s.length)}
    ids = BUILDER.tokenizer.special_ids
    return [t for i, t in enumerate(prompt.token_ids) if t in ids and i not in inside]


def random_texts(seed: int, count: int) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["How", " many", "circles", "\n", "  ", "é", "漢字", "😀", "x=1;", "<b>", "don't", "\t"]
    sizes = rng.integers(1, 20, count)
    return ["".join(rng.choice(words, size)) for size in sizes]


def test_text_prompts_equal_transformers() -> None:
    seed = 11
    for text in [*random_texts(seed, 200), "How many circles are there?"]:
        if not text.strip():
            continue
        chat = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": text},
            {"role": "assistant", "content": text[::-1]},
            {"role": "user", "content": [{"type": "text", "text": text}] * 2},
        ]
        parts = (TextPart(text=text),) * 2
        messages = [
            *(ChatMessage(role=m["role"], content=m["content"]) for m in chat[:3]),
            ChatMessage(role="user", content=parts),
        ]
        expected = TOKENIZER.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert list(BUILDER.build(messages, ()).token_ids) == expected, f"{seed=} {text!r}"


def test_picture_prompts_equal_transformers() -> None:
    processor = AutoProcessor.from_pretrained(TARGET_FOLDER, backend="pil")
    images = [picture(1), picture(2)]
    decoded = [Image.open(io.BytesIO(image.data)) for image in images]
    content = [
        {"type": "image", "image": decoded[0]},
        {"type": "image", "image": decoded[1]},
        {"type": "text", "text": "What differs?"},
    ]
    expected = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )["input_ids"][0]
    prompt = BUILDER.build_raw("What differs?", images)
    assert list(prompt.token_ids) == list(expected)
    for span, image in zip(prompt.image_spans, images, strict=True):
        assert set(prompt.token_ids[span.start : span.start + span.length]) == {IMAGE_ID}
        assert span.content_hash == image.content_hash
    assert prompt.token_ids.count(IMAGE_ID) == sum(span.length for span in prompt.image_spans)


@settings(max_examples=200, deadline=None)
@given(first=HOSTILE, second=HOSTILE, system=HOSTILE)
def test_no_text_places_a_special_token(first: str, second: str, system: str) -> None:
    messages = [
        ChatMessage(role="system", content=system),
        ChatMessage(
            role="user", content=(TextPart(text=first), ImagePart(), TextPart(text=second))
        ),
        ChatMessage(role="assistant", content=second),
        ChatMessage(role="user", content=first + "?"),
    ]
    prompt = BUILDER.build(messages, [picture(1)])
    assert specials_of(prompt) == [0, 1]  # the template's own: bos, and eos of the old answer
    assert len(prompt.image_spans) == 1


@settings(max_examples=200, deadline=None)
@given(text=HOSTILE)
def test_no_plain_prompt_places_a_special_token(text: str) -> None:
    prefix = BUILDER.tokenizer.prefix_ids
    prompt = BUILDER.build_plain(text)
    assert prompt.token_ids[: len(prefix)] == prefix
    assert BUILDER.tokenizer.special_ids.isdisjoint(prompt.token_ids[len(prefix) :])


def test_control_plain_tokenising_does_place_special_tokens() -> None:
    ids = TOKENIZER.apply_chat_template([{"role": "user", "content": "a <image> </s>"}])
    assert {1, IMAGE_ID} <= set(ids["input_ids"])


def test_two_texts_cannot_spell_a_token_together() -> None:
    parts = (TextPart(text="<ima"), TextPart(text="ge>"))
    prompt = BUILDER.build([ChatMessage(role="user", content=parts)], ())
    assert specials_of(prompt) == [0]


def test_the_text_survives_unchanged() -> None:
    text = "a <image> and </s> \ue000\ue001"
    prompt = BUILDER.build_raw(text)
    assert BUILDER.tokenizer.decode(prompt.token_ids) == f"USER: {text} ASSISTANT:"


@pytest.mark.parametrize(
    ("messages", "images", "code"),
    [
        ([ChatMessage(role="user", content="  ")], 0, "empty_prompt"),
        ([], 0, "empty_prompt"),
        ([ChatMessage(role="<image>", content="x")], 0, "invalid_role"),
        ([ChatMessage(role="user", content="x")], 1, "image_count_mismatch"),
        ([ChatMessage(role="user", content=(ImagePart(),))], 0, "empty_prompt"),
        ([ChatMessage(role="user", content=(ImagePart(),) * 9)], 9, "too_many_images"),
        ([ChatMessage(role="user", content="x" * 1_000_001)], 0, "prompt_too_long"),
        # The template shows pictures of user turns only.
        ([ChatMessage(role="assistant", content=(ImagePart(),))], 1, "image_count_mismatch"),
    ],
)
def test_refusals(messages: list[ChatMessage], images: int, code: str) -> None:
    with pytest.raises(ClientError) as caught:
        BUILDER.build(messages, [picture(1)] * images)
    assert caught.value.code == code


def test_length_is_refused_with_numbers_at_the_boundary() -> None:
    prompt = Prompt(token_ids=(5,) * 90, image_spans=())
    check_length(prompt, 10, 100)
    with pytest.raises(ClientError, match=r"100 .* 90 .* 11") as caught:
        check_length(prompt, 11, 100)
    assert caught.value.code == "context_length_exceeded"


def template(source: str) -> PromptBuilder:
    return PromptBuilder(
        TextTokenizer.from_folder(TARGET_FOLDER),
        ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}),
        None,
        None,
        2048,
        Limits(),
    )


CUTTING = "{% for m in messages %}{{ m.content.split('</think>')[-1] + eos_token }}{% endfor %}"


def test_a_template_that_cuts_texts_still_works_for_ordinary_ones() -> None:
    prompt = template(CUTTING).build_raw("thoughts</think>answer")
    assert BUILDER.tokenizer.decode(prompt.token_ids) == "answer"
    assert prompt.token_ids[-1] == 1


def test_a_template_that_cuts_texts_refuses_spelled_tokens() -> None:
    with pytest.raises(ClientError) as caught:
        template(CUTTING).build_raw("thoughts</think>a</s>nswer")
    assert caught.value.code == "invalid_prompt"


def test_a_template_that_refuses_is_the_clients_error_in_our_words() -> None:
    source = (
        "{% if messages|length > 1 %}{{ raise_exception('secret words') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    with pytest.raises(ClientError) as caught:
        template(source).build([ChatMessage(role="user", content="a")] * 2, ())
    assert caught.value.code == "invalid_messages"
    assert "secret" not in caught.value.message


def test_templates_are_sandboxed() -> None:
    source = "{{ messages[0].content }}{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ConfigError):
        ChatTemplate(source, {})


def test_a_text_that_knows_the_marks_format_gains_nothing() -> None:
    message = ChatMessage(role="user", content="\ue002" + "0" * 32 + "\ue003<image>")
    special = BUILDER._special
    pieces = render_pieces(lambda m: f"<s>{m[0].content}<image>", [message], special)
    assert [piece.from_request for piece in pieces] == [False, True, False]
    assert pieces[1].text == message.content


def test_a_vocabulary_that_can_spell_a_special_token_is_cut(tmp_path: Path) -> None:
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": 4,
                "content": "<s>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "vocab": {"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4},
            "merges": [["<", "s"], ["<s", ">"]],
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = TextTokenizer.from_folder(tmp_path)
    assert tokenizer.encode("s<s><s>") == [1, 0, 1, 2, 0, 1, 2]
    assert tokenizer.encode("<s>", at_start=False) == [0, 1, 2]
