"""A user's requests are read as they are meant, or refused by line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from smart_serve.bench.prepared import prepared, prompt_of
from smart_serve.bench.workload import MAX_TOKENS, picture_questions, read_workload
from smart_serve.cli import main
from smart_serve.errors import ConfigError
from smart_serve.llm import LLM
from vision.image import image_from_pil


def test_prompts_pictures_and_lengths_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "red.png")
    file = tmp_path / "work.jsonl"
    file.write_text(
        '{"prompt": "Hello"}\n\n'
        '{"prompt": "What?", "images": ["red.png", "red.png"], "max_tokens": 5}\n'
    )
    hello, what = read_workload(file)
    assert (hello.text, hello.pictures, hello.max_tokens) == ("Hello", (), MAX_TOKENS)
    assert (what.text, what.max_tokens) == ("What?", 5)
    assert [picture.size for picture in what.pictures] == [(8, 6)] * 2


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"prompt": ""}',
        '{"prompt": 3}',
        '{"prompt": "a", "image": "b.png"}',
        '{"prompt": "a", "images": "b.png"}',
        '{"prompt": "a", "images": ["missing.png"]}',
        '{"prompt": "a", "images": ["work.jsonl"]}',
        '{"prompt": "a", "max_tokens": 0}',
    ],
)
def test_a_wrong_line_is_named(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "work.jsonl"
    file.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    with pytest.raises(ConfigError, match="line 3: "):
        read_workload(file)
    assert main(["bench", "--workload", str(file)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe\x00"])
def test_a_file_without_work_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "work.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"work\.jsonl"):
        read_workload(file)


def test_prompts_are_brought_to_a_context() -> None:
    library = LLM(drafter=None, max_running=1)
    (question,) = picture_questions(1, seed=7)
    images = [image_from_pil(picture, library.limits) for picture in question.pictures]
    short, long = (prompt_of(library, question, images, context) for context in (0, 500))
    assert len(short.token_ids) < 500 == len(long.token_ids)
    (before,), (after,) = short.image_spans, long.image_spans
    image = library.engine.model.image_token_id
    assert long.token_ids[after.start : after.start + after.length] == (image,) * before.length
    assert long.token_ids.count(image) == before.length
    assert long.token_ids[0] == short.token_ids[0]
    assert long.token_ids[1 - len(short.token_ids) :] == short.token_ids[1:]
    # One that is longer already stays.
    assert prompt_of(library, question, images, 10) == short
    ((request, features),) = prepared(library, [question], 500)
    assert request.token_ids == long.token_ids
    assert [len(one) for one in features] == [before.length]
