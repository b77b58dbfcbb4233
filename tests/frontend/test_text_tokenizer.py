"""Ordinary text gets the library's own tokens for every kind of tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest

from smart_serve.errors import ConfigError
from smart_serve.frontend.chat import ChatMessage
from smart_serve.frontend.prompt import PromptBuilder
from smart_serve.frontend.template import ChatTemplate
from smart_serve.frontend.tokenizer import TextTokenizer
from smart_serve.limits import Limits
from tests.frontend.tokenizers_under_test import loaded, sentencepiece_like

SOURCE = "<s>{% for m in messages %}[INST] {{ m.content }} [INST]{{ m.content }}</s> x {% endfor %}"


@pytest.mark.parametrize("strip", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kind", ["prepend", "first", "always"])
def test_prompts_equal_the_librarys(kind: str, strip: tuple[bool, bool], tmp_path: Path) -> None:
    spec, reference = sentencepiece_like(kind, *strip)
    template = ChatTemplate(SOURCE, {})
    builder = PromptBuilder(loaded(spec, tmp_path), template, None, None, 2048, Limits())
    seed = 23
    rng = np.random.default_rng(seed)
    words = ["a", "ab", " in", "in", " ", "  ", "\n", "é", "漢", "<a", "[i", "x", "don't", "0"]
    for _ in range(60):
        text = "".join(rng.choice(words, rng.integers(1, 12)))
        if not text.strip():
            continue
        messages = [ChatMessage(role="user", content=text), ChatMessage(role="user", content="b")]
        rendered = template.render([{"role": m.role, "content": m.content} for m in messages])
        expected = reference.encode(rendered, add_special_tokens=False).ids
        assert list(builder.build(messages, ()).token_ids) == expected, f"{seed=} {text!r}"


def test_eos_comes_from_every_configuration(tmp_path: Path) -> None:
    spec, _ = sentencepiece_like("first")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 9}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    assert loaded(spec, tmp_path).eos_ids == {2, 7, 8, 9}


def test_an_image_token_is_special_even_if_the_file_says_otherwise(tmp_path: Path) -> None:
    spec, _ = sentencepiece_like("first")
    token = dict(spec["added_tokens"][-1], id=len(spec["model"]["vocab"]) + 1)
    spec["added_tokens"].append({**token, "content": "<image>", "special": False})
    (tmp_path / "config.json").write_text(json.dumps({"image_token_index": token["id"]}))
    tokenizer = loaded(spec, tmp_path)
    assert token["id"] in tokenizer.special_ids
    assert token["id"] not in tokenizer.encode("a <image> b")


def test_a_broken_tokenizer_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        TextTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [], "model": 3}')
    with pytest.raises(ConfigError, match="cannot be loaded"):
        TextTokenizer.from_folder(tmp_path)
