"""From messages and pictures to tokens: several pictures and turns, as `generate` answers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from chat_folders import write_llava, write_msd, write_qwen2_vl
from small_models import small_text_config
from transformers import AutoModelForImageTextToText, PreTrainedModel

from smart_serve.errors import ClientError
from smart_serve.llm import LLM
from smart_serve.messages import SamplingParams
from tests.vision.pictures import encoded, noise
from tests.vision.test_orientation import exif
from vision.image import decode_image
from vision.pixels import PixelProcessor

MAX_TOKENS = 12
PICTURES = [noise(i, *size) for i, size in enumerate([(30, 20), (9, 40), (24, 24)])]
SIDEWAYS = encoded(noise(9, 40, 10), "JPEG", exif=exif(6))
"""Its header says 40 x 10, and it is shown as 10 x 40."""
PLACE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


CHATS: list[dict[str, Any]] = [
    {"messages": [user(text("Hello"))]},
    {"prompt": "How many circles?", "images": PICTURES[:1]},
    {"prompt": "Which way up?", "images": [SIDEWAYS]},
    {"messages": [user(PLACE, text("and"), PLACE)], "images": PICTURES[:2]},
    {"messages": [user(text("Which?"), PLACE, PLACE, PLACE)], "images": PICTURES},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            user(PLACE, text("What is it?")),
            {"role": "assistant", "content": "A red circle."},
            user(text("And these?"), PLACE, PLACE),
            {"role": "assistant", "content": "Squares."},
            user(text("Sure?")),
        ],
        "images": [PICTURES[2], PICTURES[0], PICTURES[0]],
    },
]


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"chatting_{request.param}")
    if request.param == "llava":
        write_llava(folder, small_text_config())
    else:
        write_qwen2_vl(folder)
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> LLM:
    return LLM(folder, None, "off", kv_tokens=2048)


@pytest.fixture(scope="module")
def expected(plain: LLM) -> list[tuple[int, ...]]:
    """Each chat alone, through the stock model."""
    model = AutoModelForImageTextToText.from_pretrained(plain.folder, dtype=torch.float32).eval()
    return [generated(model, plain, chat) for chat in CHATS]


def generated(model: PreTrainedModel, llm: LLM, chat: dict[str, Any]) -> tuple[int, ...]:
    request, images = llm._request(0, chat, SamplingParams(max_tokens=MAX_TOKENS))
    ids = torch.tensor([request.token_ids])
    inputs: dict[str, torch.Tensor] = {}
    if images:
        processor = PixelProcessor.from_folder(llm.folder)
        each = [processor(decode_image(image)) for image in images]
        inputs = {name: torch.cat([one[name] for one in each]) for name in each[0]}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            **inputs,
        )
    return tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize(
    ("drafter", "policy", "chunk"),
    [
        (None, "off", 7),
        ("ngram", "smart", 11),
        ("draft_model:{}", "eagle2", 64),
        ("msd", "chain:3", 9),
    ],
)
def test_chats_with_pictures_and_turns_equal_generate(
    folder: Path,
    expected: list[tuple[int, ...]],
    tmp_path: Path,
    drafter: str | None,
    policy: str,
    chunk: int,
) -> None:
    named = drafter and drafter.format(folder)
    if drafter == "msd":
        named = str(write_msd(tmp_path / "msd", folder))
    llm = LLM(folder, named, policy, kv_tokens=2048, prefill_chunk_tokens=chunk)
    sampling = SamplingParams(max_tokens=MAX_TOKENS)
    together = llm.generate(CHATS, sampling)
    assert [answer.token_ids for answer in together] == expected
    alone = llm.generate(CHATS[-1:], sampling)
    assert alone[0].token_ids == expected[-1]
    llm.engine.scheduler.pool.check_idle()
    if drafter not in (None, "ngram"):
        network = llm.engine.drafting.drafter._network
        assert network.has_mrope == llm.engine.model.has_mrope
        assert all(answer.stats.drafted_tokens > 0 for answer in together)


def test_pictures_matter(plain: LLM, expected: list[tuple[int, ...]]) -> None:
    """The control: the same words with the pictures exchanged are answered otherwise."""
    swapped = [{**chat, "images": chat["images"][::-1]} for chat in CHATS[3:5]]
    answers = plain.generate(swapped, SamplingParams(max_tokens=MAX_TOKENS))
    assert [answer.token_ids for answer in answers] != expected[3:5]


@pytest.mark.parametrize(
    "prompt",
    [
        {"messages": [{"role": "user"}]},
        {"messages": [user({"type": "video"})]},
        {"messages": "hello"},
        {"messages": [user(text("x"))], "prompt": "x"},
        {"prompt_token_ids": [3], "images": PICTURES[:1]},
        {"images": PICTURES[:1]},
        {},
    ],
)
def test_malformed_prompts_are_the_callers_error(plain: LLM, prompt: dict[str, Any]) -> None:
    with pytest.raises(ClientError):
        plain.generate([prompt])
