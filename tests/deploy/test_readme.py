"""The README's Python blocks, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from served_app import ServedApp

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
SHELL_BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)

pytestmark = [
    pytest.mark.serve,
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
]


def test_there_are_blocks_to_run() -> None:
    assert len(PYTHON_BLOCKS) >= 3
    assert len(SHELL_BLOCKS) >= 3


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.split("\n", 1)[0])
def test_python_block_runs(
    block: str, app: ServedApp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(block.replace("http://127.0.0.1:8000", app.url), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str.strip)
def test_shell_block_names_what_exists(block: str) -> None:
    """They start servers and test runs, which a test must not; what they name must be there."""
    for word in block.split():
        if "/" in word and not word.startswith("-"):
            assert (ROOT / word).exists(), word
        if word == "deploy.app:build":
            from deploy.app import build

            assert callable(build)
