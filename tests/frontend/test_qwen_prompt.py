"""Qwen2-VL prompts: each picture is a run of its own length, between the template's marks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from qwen_folder import SPECIAL, TEMPLATE, write_qwen_folder
from transformers import PreTrainedTokenizerFast

from smart_serve.frontend.chat import ChatMessage, ImagePart, TextPart
from smart_serve.frontend.prompt import Prompt, PromptBuilder
from vision.image import CheckedImage, image_from_pil

with tempfile.TemporaryDirectory() as name:
    IDS = write_qwen_folder(Path(name))
    BUILDER = PromptBuilder.from_folder(name)
    TOKENIZER = PreTrainedTokenizerFast(tokenizer_file=f"{name}/tokenizer.json")
SIZES = [(56, 56), (200, 100), (90, 300)]
FRAGMENTS = (
    *SPECIAL,
    *("<|", "|>", "image", "_pad", "<|image", "_pad|>", "vision_start|>", "<|im", "_end|>"),
    *("\n", "user", "assistant", " ", "é", "漢", "\ue000", "\ue003"),
)
HOSTILE = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=10).map("".join)


def picture(size: tuple[int, int]) -> CheckedImage:
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return image_from_pil(Image.fromarray(pixels))


IMAGES = [picture(size) for size in SIZES]


def chat(*texts: str) -> list[ChatMessage]:
    """Pictures between the texts of two turns, with an answer between the turns."""
    first = (ImagePart(), TextPart(text=texts[0]), ImagePart())
    return [
        ChatMessage(role="user", content=first),
        ChatMessage(role="assistant", content=texts[1]),
        ChatMessage(role="user", content=(TextPart(text=texts[2]), ImagePart())),
    ]


def test_prompts_equal_those_of_the_library() -> None:
    prompt = BUILDER.build(chat("What is it?", "A cat. é", "And now?"), IMAGES)
    places = ["image", "text", "image"]
    turns = [
        {"role": "user", "content": [{"type": kind, "text": "What is it?"} for kind in places]},
        {"role": "assistant", "content": "A cat. é"},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}, {"type": "image"}]},
    ]
    rendered = TOKENIZER.apply_chat_template(
        turns, chat_template=TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    head, *rest = rendered.split("<|image_pad|>")
    assert len(rest) == 3
    for span, text in zip(prompt.image_spans, rest, strict=True):
        head += "<|image_pad|>" * span.length + text
    assert list(prompt.token_ids) == TOKENIZER.encode(head, add_special_tokens=False)


def test_spans_tell_length_and_grid() -> None:
    prompt = BUILDER.build(chat("a", "b", "c"), IMAGES)
    assert [span.grid for span in prompt.image_spans] == [(2, 2), (4, 7), (11, 3)]
    for span, image in zip(prompt.image_spans, IMAGES, strict=True):
        assert span.length == span.grid[0] * span.grid[1]
        assert span.content_hash == image.content_hash
        inside = prompt.token_ids[span.start : span.start + span.length]
        assert set(inside) == {IDS["<|image_pad|>"]}
        assert prompt.token_ids[span.start - 1] == IDS["<|vision_start|>"]
        assert prompt.token_ids[span.start + span.length] == IDS["<|vision_end|>"]


def counts(prompt: Prompt) -> dict[str, int]:
    return {text: prompt.token_ids.count(index) for text, index in IDS.items()}


@settings(max_examples=150, deadline=None)
@given(first=HOSTILE, second=HOSTILE, third=HOSTILE)
def test_no_text_places_a_special_or_image_token(first: str, second: str, third: str) -> None:
    harmless = BUILDER.build(chat("x", "x", "x"), IMAGES)
    hostile = BUILDER.build(chat(first, second, third), IMAGES)
    assert counts(hostile) == counts(harmless)
    lengths = [span.length for span in hostile.image_spans]
    assert lengths == [span.length for span in harmless.image_spans]


def test_control_plain_tokenising_does_place_image_tokens() -> None:
    ids = TOKENIZER.encode("<|vision_start|><|image_pad|><|vision_end|>")
    assert IDS["<|image_pad|>"] in ids
