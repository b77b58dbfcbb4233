"""Who may import whom, read from the sources; and what importing the edge must not load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("smart_serve", "vision", "kernels", "deploy")
BASE = r"smart_serve\.(messages|step_trace|config|limits|errors)"
HEAVY = r"(torch|ray|transformers)"


@dataclass(frozen=True)
class Rule:
    """`own` and `foreign` say what the modules named by `who` may import; None: anything."""

    who: str
    own: str | None = None
    foreign: str | None = None
    banned: str | None = None

    def allows(self, module: str) -> bool:
        if self.banned is not None and _is_under(module, self.banned):
            return False
        wanted = self.own if module.split(".")[0] in OURS else self.foreign
        return wanted is None or _is_under(module, wanted)


def _is_under(module: str, pattern: str) -> bool:
    return re.fullmatch(rf"({pattern})(\..*)?", module) is not None


STDLIB = "|".join(sorted(sys.stdlib_module_names))
RULES = (
    Rule(BASE, own=BASE, foreign=f"{STDLIB}|msgspec"),
    Rule("kernels", own="kernels"),
    Rule(
        r"smart_serve\.speculation",
        own=rf"{BASE}|smart_serve\.speculation",
        foreign=f"{STDLIB}|numpy|msgspec",
    ),
    Rule(
        r"smart_serve\.verification", own=rf"{BASE}|kernels|smart_serve\.(speculation|verification)"
    ),
    Rule(r"smart_serve\.routing", banned=HEAVY),
    Rule(
        r"smart_serve\.openai",
        own=rf"{BASE}|smart_serve\.(frontend|openai)|vision\.(image|data_url)",
        banned=HEAVY,
    ),
    Rule("vision", own=r"smart_serve\.(limits|errors|checkpoint)|vision"),
    Rule(
        r"smart_serve\.paging",
        own=r"kernels|smart_serve\.paging|smart_serve\.models\.(attention_step|target)",
    ),
    Rule(
        r"smart_serve\.drafters",
        own=r"smart_serve\.(drafters|paging|models|speculation|config|errors|checkpoint)",
    ),
    Rule(
        r"smart_serve\.engine",
        banned=r"vision|smart_serve\.(openai|frontend|bench|llm|routing|bundled)",
    ),
    Rule(r"(?!deploy)[a-z_]+", banned="ray|deploy"),
)


@dataclass(frozen=True)
class Source:
    module: str
    text: str


def imports_of(source: Source) -> Iterator[str]:
    """Every module that `source` names, at any depth, type-checking imports included."""
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.module}: relative imports hide their target"
            assert node.module is not None
            if node.module in OURS or (ROOT / node.module.replace(".", "/")).is_dir():
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def wrong_edges(sources: list[Source]) -> list[str]:
    return [
        f"{source.module} -> {module}"
        for source in sources
        for module in imports_of(source)
        if not all(rule.allows(module) for rule in RULES if _is_under(source.module, rule.who))
    ]


def all_sources() -> list[Source]:
    files = (path for top in OURS for path in sorted((ROOT / top).rglob("*.py")))
    return [
        Source(".".join(path.relative_to(ROOT).with_suffix("").parts), path.read_text("utf-8"))
        for path in files
    ]


def test_no_import_goes_against_the_design() -> None:
    sources = all_sources()
    assert len(sources) > 60
    assert wrong_edges(sources) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("smart_serve.speculation.bad", "import torch"),
        ("smart_serve.speculation.bad", "from smart_serve.engine import loop"),
        ("smart_serve.speculation.bad", "def late():\n    from transformers import AutoModel"),
        ("kernels.bad", "from smart_serve.errors import ServerError"),
        ("smart_serve.messages", "import numpy"),
        ("smart_serve.routing.bad", "import ray.serve"),
        ("smart_serve.openai.bad", "from vision.encoder import VisionEncoder"),
        ("smart_serve.openai.bad", "from vision import encoder"),
        ("smart_serve.engine.bad", "from smart_serve.frontend.prompt import PromptBuilder"),
        ("smart_serve.engine.bad", "from smart_serve import llm"),
        ("smart_serve.drafters.bad", "from smart_serve.engine.sequence import Sequence"),
        ("smart_serve.paging.bad", "from smart_serve.models.families import load_target"),
        ("vision.bad", "from smart_serve.messages import ImageSpan"),
        ("smart_serve.llm", "import ray"),
        ("smart_serve.cli", "if True:\n    from deploy.app import build"),
    ],
)
def test_a_planted_bad_import_is_reported(module: str, text: str) -> None:
    assert len(wrong_edges([Source(module, text)])) == 1


@pytest.mark.parametrize(
    "module",
    [
        "smart_serve",
        "smart_serve.speculation.policies",
        "smart_serve.routing.plan",
        "smart_serve.openai.validate",
    ],
)
def test_the_edge_and_the_controller_load_no_heavy_library(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'ray', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
