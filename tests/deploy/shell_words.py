"""Whether a command in the documentation could be run: told without running it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import deploy
from deploy.args import AppArgs
from deploy.proxy import NODE
from deploy.routes import CONSOLE_ROUTES, ROUTES
from smart_serve.cli import parse

ROOT = Path(deploy.__file__).resolve().parents[1]
_PATHS = [re.compile(re.sub(r"\{.*?\}", ".+", route.path)) for route in (*ROUTES, *CONSOLE_ROUTES)]


def check_script(script: str) -> None:
    """Raises `AssertionError`, or a parser's own error, for the first command that cannot be
    right. A command that is not known here is an error too."""
    for words in commands(script):
        program, arguments = words[0], words[1:]
        assert program in _CHECKS, f"nobody checks '{program}'"
        _CHECKS[program](arguments)


def commands(script: str) -> Iterator[list[str]]:
    """The words of each simple command; assignments before it are left out."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)


def _smart_serve(words: list[str]) -> None:
    parse(words)


def _bash(words: list[str]) -> None:
    _file(words[0])
    text = (ROOT / words[0]).read_text(encoding="utf-8")
    for option in words[1:]:
        assert not option.startswith("--") or option in text, option


def _serve(words: list[str]) -> None:
    match words:
        case ["run", "deploy.app:build", *arguments]:
            pairs = [word.split("=", 1) for word in arguments if "=" in word]
            AppArgs.model_validate(dict(pairs))
        case ["deploy", config]:
            _file(config)
        case ["status" | "shutdown", *_]:
            pass
        case _:
            raise AssertionError(f"serve {words}")


def _python(words: list[str]) -> None:
    assert words[0] == "-m", words
    assert importlib.util.find_spec(words[1]) is not None, words[1]


def _curl(words: list[str]) -> None:
    (url,) = (word for word in words if word.startswith("http"))
    path = re.sub(r"^https?://[^/]+", "", url)
    assert any(known.fullmatch(path) for known in _PATHS), url


def _kubectl(words: list[str]) -> None:
    for i, word in enumerate(words):
        if word in ("-f", "-k"):
            _file(words[i + 1])


def _docker(words: list[str]) -> None:
    assert words[0] == "build", words
    _file(words[words.index("-f") + 1])


def _ray(words: list[str]) -> None:
    assert words == ["start", "--head"], words


def _export(words: list[str]) -> None:
    for name, value in (word.split("=", 1) for word in words):
        program = re.fullmatch(r"\$\(command -v ([\w-]+)\)", value)
        said = f"{sysconfig.get_path('scripts')}/{program[1]}" if program else value
        assert NODE.get(name, said) == said, name


def _file(name: str) -> None:
    assert (ROOT / name).exists(), name


def _nothing(words: list[str]) -> None:
    pass


_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "smart-serve": _smart_serve,
    "bash": _bash,
    "serve": _serve,
    "python": _python,
    "curl": _curl,
    "kubectl": _kubectl,
    "docker": _docker,
    "ray": _ray,
    "export": _export,
    **dict.fromkeys(("openssl", "sha256sum", "tr", "true"), _nothing),
}
