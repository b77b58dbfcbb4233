"""README and pages: their blocks, run as they stand; their links; what they take from the types."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from doc_pages import PAGES, ROOT, Block, all_blocks, blocks
from pydantic import BaseModel, ValidationError
from served_app import ServedApp
from shell_words import check_script

from deploy.args import AppArgs, PoolArgs
from deploy.keys import ApiKey
from deploy.reference import refreshed
from smart_serve.config import (
    POLICY_NAMES,
    VERIFICATION_RULES,
    EngineConfig,
    SpeculationConfig,
)
from smart_serve.limits import Limits
from smart_serve.messages import SamplingParams
from smart_serve.openai.field_docs import field_docs

RUN_BY_A_TEST = ("python", "bash", "json", "yaml")
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for top in ("smart_serve", "vision", "deploy")
    for path in sorted((ROOT / top).rglob("*.py"))
)


@pytest.mark.serve
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.name)
def test_python_block_runs(
    block: Block,
    app: ServedApp,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    text = block.text.replace("http://127.0.0.1:8000", app.url)
    exec(compile(text, block.name, "exec"), {"__name__": block.name})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("block", blocks("bash"), ids=lambda block: block.name)
def test_shell_block_says_what_exists(block: Block) -> None:
    """They start servers and test runs, which a test must not; what they name must be there."""
    check_script(block.text)


@pytest.mark.parametrize(
    "wrong",
    [
        "smart-serve bench --polices off",
        "smart-serve dance",
        "bash deploy/quickstart.sh --twice",
        "bash deploy/slowstart.sh",
        "serve run deploy.app:build modle=bundled",
        "serve deploy deploy/configs/none.yaml",
        "curl http://127.0.0.1:8000/v2/models",
        "true && python -m deploy.nothing",
        "sudo reboot",
    ],
)
def test_a_command_that_cannot_be_right_is_found(wrong: str) -> None:
    with pytest.raises((AssertionError, SystemExit, ValidationError)):
        check_script(wrong)


@pytest.mark.parametrize("block", blocks("json", "yaml"), ids=lambda block: block.name)
def test_data_block_can_be_read(block: Block) -> None:
    (json.loads if block.language == "json" else yaml.safe_load)(block.text)


def test_every_block_is_run_or_is_plain_text() -> None:
    assert {block.language for block in all_blocks()} <= {*RUN_BY_A_TEST, "text"}
    drawn = [block for block in all_blocks() if block.language == "text"]
    assert not [block.name for block in drawn if "smart_serve" in block.text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_generated_parts_are_what_the_types_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert refreshed(text) == text, "run: python -m deploy.reference"


def test_a_part_that_was_changed_by_hand_is_found() -> None:
    page = (ROOT / "deploy" / "docs" / "configuration.md").read_text(encoding="utf-8")
    changed = page.replace("| `kv_tokens` | integer |", "| `kv_tokens` | string |")
    assert changed != page
    assert refreshed(changed) == page


@pytest.mark.parametrize(
    "kind",
    [AppArgs, PoolArgs, ApiKey, EngineConfig, SpeculationConfig, Limits, SamplingParams],
)
def test_every_setting_says_what_it_does(kind: type) -> None:
    fields = kind.model_fields if issubclass(kind, BaseModel) else kind.__struct_fields__
    assert set(fields) <= set(field_docs(kind))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, heading = target.partition("#")
        if re.match(r"https?:", file):
            continue
        linked = page if not file else (page.parent / file).resolve()
        assert linked.exists(), target
        assert not heading or heading in _anchors(linked), target


def _anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_error_code_is_told() -> None:
    codes = set(re.findall(r"\bcode(?:: str)? ?= ?\"(\w+)\"", SOURCES))
    table = (ROOT / "deploy" / "docs" / "api.md").read_text(encoding="utf-8")
    assert len(codes) > 30
    assert codes <= set(re.findall(r"`(\w+)`", table))


def test_every_log_line_that_is_told_is_written_somewhere() -> None:
    page = (ROOT / "deploy" / "docs" / "operations.md").read_text(encoding="utf-8")
    failures = page[page.index("## Failures") : page.index("## Upgrading")]
    rows = [line.split(" | ") for line in failures.splitlines() if line.count(" | ") == 2]
    told = [words for row in rows for words in re.findall(r"`([^`]+)`", row[1])]
    assert len(told) > 5
    assert [words for words in told if words not in SOURCES] == []


def test_every_variable_of_the_environment_is_told() -> None:
    page = (ROOT / "deploy" / "docs" / "configuration.md").read_text(encoding="utf-8")
    names = set(re.findall(r"\"(SMART_SERVE_\w+)\"", SOURCES))
    assert len(names) >= 3
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_every_policy_is_told() -> None:
    page = (ROOT / "deploy" / "docs" / "how-smart-decides.md").read_text(encoding="utf-8")
    assert [name for name in POLICY_NAMES if f"\n| `{name}` |" not in page] == []
    assert [rule for rule in VERIFICATION_RULES if rule not in page] == []
