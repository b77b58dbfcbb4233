"""What is asked: picture questions of the bundled model's domain, or a user's own requests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from smart_serve.bundled.questions import ask, ask_any
from smart_serve.bundled.render_heldout import render_heldout
from smart_serve.bundled.scene import sample_scene
from smart_serve.errors import ConfigError

MAX_TOKENS = 128
"""Of an answer, where the workload does not say."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request of the workload."""

    text: str
    pictures: tuple[Image.Image, ...] = ()
    max_tokens: int = MAX_TOKENS


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a workload file."""

    prompt: str
    images: tuple[str, ...] = ()
    """Files, relative to the workload's folder."""
    max_tokens: int = MAX_TOKENS


def picture_questions(count: int, seed: int) -> list[Question]:
    """Every other one asks for a description (30 to 90 tokens), the others for one sentence; the
    pictures come from the renderer that no training saw."""
    rng = np.random.default_rng(seed)
    questions = []
    for i in range(count):
        scene = sample_scene(rng)
        exchange = ask(scene, "describe", rng) if i % 2 == 0 else ask_any(scene, rng)
        questions.append(Question(exchange.question, (render_heldout(scene, rng),)))
    return questions


def read_workload(path: Path) -> list[Question]:
    """One JSON object a line: {"prompt": …, "images": [files], "max_tokens": …}; only the prompt is
    needed. Raises `ConfigError` with the number of the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the workload {path} cannot be read as text") from error
    questions = [
        _question(line, path, number) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not questions:
        raise ConfigError(f"the workload {path} has no line")
    return questions


def _question(text: str, path: Path, number: int) -> Question:
    try:
        line = msgspec.json.decode(text, type=_Line)
        if line.max_tokens < 1 or not line.prompt:
            raise ConfigError("prompt must not be empty, max_tokens must be at least 1")
        pictures = tuple(_picture(path.parent / name) for name in line.images)
    except (msgspec.MsgspecError, ConfigError) as error:
        raise ConfigError(f"{path}, line {number}: {error}") from error
    return Question(line.prompt, pictures, line.max_tokens)


def _picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path} cannot be read as a picture") from error
