"""A chat template comes from the model's own files, or there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from smart_serve.bundled import TARGET_FOLDER
from smart_serve.errors import ClientError, ConfigError
from smart_serve.frontend.prompt import PromptBuilder
from smart_serve.frontend.template import ChatTemplate


def saying(word: str) -> str:
    return word + ": {% for m in messages %}{{ m.content }}{% endfor %}"


def rendered(folder: Path) -> str:
    template = ChatTemplate.from_folder(folder)
    assert template is not None
    return template.render([{"role": "user", "content": "x"}])


def test_the_order_of_the_files_is_that_of_transformers(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": saying("t")}, {"name": "default", "template": "-"}]
    named[1]["template"] = saying("named")
    steps: list[tuple[str, Any, str]] = [
        ("tokenizer_config.json", {"chat_template": saying("config")}, "config: x"),
        ("tokenizer_config.json", {"chat_template": named}, "named: x"),
        ("chat_template.json", {"chat_template": saying("json")}, "json: x"),
    ]
    for name, content, expected in steps:
        (tmp_path / name).write_text(json.dumps(content))
        assert rendered(tmp_path) == expected
    (tmp_path / "chat_template.jinja").write_text(saying("jinja"))
    assert rendered(tmp_path) == "jinja: x"


def test_a_template_that_is_no_text_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(ConfigError, match="not a text"):
        ChatTemplate.from_folder(tmp_path)


def test_without_a_template_chats_are_refused_and_texts_are_not(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(TARGET_FOLDER / name, tmp_path / name)
    builder = PromptBuilder.from_folder(tmp_path)
    with pytest.raises(ClientError) as caught:
        builder.build_raw("Hello")
    assert caught.value.code == "no_chat_template"
    assert builder.build_plain("Hello").token_ids


def test_a_folder_without_tokenizer_json_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 8}))
    with pytest.raises(ConfigError, match="save_pretrained"):
        PromptBuilder.from_folder(tmp_path)
