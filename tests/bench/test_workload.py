"""A user's requests are read as they are meant, or refused by line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from smart_serve.bench.workload import MAX_TOKENS, read_workload
from smart_serve.cli import main
from smart_serve.errors import ConfigError


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
