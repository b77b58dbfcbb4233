"""What every source file keeps to, read from the sources; each rule with a planted breach."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("smart_serve", "vision", "kernels", "deploy")
TOP = {*PACKAGES, "tests", "pyproject.toml", "README.md", "LICENSE"}
TEXT = {".py", ".md", ".toml", ".yaml", ".sh", ".json", ".txt", ".js", ".css", ".html", ""}
MOST_LINES, MOST_FUNCTION_LINES = 350, 40
KERNELS = "kernels/gpu/"
"""A Triton kernel is compiled as one function, however long."""
TRAINING = "smart_serve/bundled/"
"""Scripts that own their process, and its random state."""
DANGEROUS = {"eval", "exec", "os.system", "yaml.load", "pickle.load", "pickle.loads"}
GLOBAL_RANDOM = re.compile(
    r"(np|numpy)\.random\.(?!default_rng|Generator|Philox|SeedSequence|PCG64)\w+"
    r"|random\.(random|randint|choice|choices|shuffle|seed|uniform|sample)|torch\.manual_seed"
)
OUR_PLACES = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/[\w.]+")
IMPORTED_AS = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "huggingface-hub": "huggingface_hub",
    "opentelemetry-api": "opentelemetry",
    "grpcio": "grpc",
    "prometheus-client": "prometheus_client",
}
"""Distributions whose package has another name."""
TOOLS = {"ruff", "mypy", "pytest-asyncio"}
"""They are run, not imported."""

Rule = Callable[[str, str], Iterator[str]]
"""(path, source) to what is wrong with it."""


@functools.lru_cache(maxsize=1024)
def nodes(text: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(text)))


def too_long(path: str, text: str) -> Iterator[str]:
    if text.count("\n") > MOST_LINES:
        yield f"more than {MOST_LINES} lines"
    for node in nodes(text):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            if lines > MOST_FUNCTION_LINES and not path.startswith(KERNELS):
                yield f"{node.name} has {lines} lines"


def silent_except(path: str, text: str) -> Iterator[str]:
    for node in nodes(text):
        if isinstance(node, ast.ExceptHandler) and (
            node.type is None or all(isinstance(one, ast.Pass) for one in node.body)
        ):
            yield f"line {node.lineno}: an error is swallowed"


def dangerous_call(path: str, text: str) -> Iterator[str]:
    for node in nodes(text):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if (
            name in DANGEROUS
            or options.get("shell") == "True"
            or options.get("trust_remote_code") == "True"
            or (name == "torch.load" and options.get("weights_only") != "True")
        ):
            yield f"line {node.lineno}: {name}"


def global_random_state(path: str, text: str) -> Iterator[str]:
    calls = (node for node in nodes(text) if isinstance(node, ast.Call))
    for name, line in ((ast.unparse(call.func), call.lineno) for call in calls):
        if GLOBAL_RANDOM.fullmatch(name) and not path.startswith(TRAINING):
            yield f"line {line}: {name}"


@pytest.mark.parametrize("rule", [too_long, silent_except, dangerous_call, global_random_state])
def test_sources_keep_the_rule(rule: Rule) -> None:
    sources = [path for top in PACKAGES for path in sorted((ROOT / top).rglob("*.py"))]
    assert len(sources) > 100
    names = {path: path.relative_to(ROOT).as_posix() for path in sources}
    assert [
        f"{names[path]}: {problem}"
        for path in sources
        for problem in rule(names[path], path.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (too_long, "x = 1\n" * 400),
        (too_long, "def long():\n" + "    x = 1\n" * 41),
        (silent_except, "try:\n    pass\nexcept:\n    raise"),
        (silent_except, "try:\n    f()\nexcept OSError:\n    pass"),
        (dangerous_call, "import torch\ntorch.load('weights.bin')"),
        (dangerous_call, "subprocess.run('ls', shell=True)"),
        (dangerous_call, "AutoModel.from_pretrained(name, trust_remote_code=True)"),
        (dangerous_call, "eval(text)"),
        (global_random_state, "import numpy as np\nnp.random.rand(3)"),
        (global_random_state, "random.choice(names)"),
    ],
)
def test_a_planted_breach_is_reported(rule: Rule, text: str) -> None:
    assert len(list(rule("smart_serve/bad.py", text))) == 1


def test_nothing_else_lies_at_the_top() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    known = TOP | {name.strip("/") for name in ignored}
    entries = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {name for name in entries - known if not name.endswith(".egg-info")} == set()


def test_no_file_names_a_place_of_one_machine() -> None:
    tops = [ROOT / name for name in TOP]
    files = [one for top in tops for one in ([top] if top.is_file() else top.rglob("*"))]
    found = [
        f"{path.relative_to(ROOT)}: {place}"
        for path in files
        if path.is_file() and path.suffix in TEXT and path != Path(__file__).resolve()
        for place in OUR_PLACES.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(files) > 200
    assert found == []
    assert OUR_PLACES.findall('open("/home/me/x")')


def test_test_files_have_names_of_their_own() -> None:
    # pytest imports them by their base names alone.
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)


def test_every_dependency_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for wanted, tops in (
        (project["dependencies"], PACKAGES),
        (project["optional-dependencies"]["dev"], (*PACKAGES, "tests")),
    ):
        imported = set(_imported(tops))
        names = {re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0] for line in wanted} - TOOLS
        unused = {name for name in names if IMPORTED_AS.get(name, name) not in imported}
        assert unused == set()


def _imported(tops: tuple[str, ...]) -> Iterator[str]:
    for path in (path for top in tops for path in (ROOT / top).rglob("*.py")):
        for node in nodes(path.read_text(encoding="utf-8")):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.split(".")[0]
