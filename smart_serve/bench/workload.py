"""Picture questions of the bundled model's domain, drawn by the renderer that no training saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from smart_serve.bundled.questions import ask, ask_any
from smart_serve.bundled.render_heldout import render_heldout
from smart_serve.bundled.scene import sample_scene


@dataclass(frozen=True, slots=True)
class Question:
    """One request of the workload."""

    text: str
    picture: Image.Image


def picture_questions(count: int, seed: int) -> list[Question]:
    """Every other one asks for a description (30 to 90 tokens), the others for one sentence."""
    rng = np.random.default_rng(seed)
    questions = []
    for i in range(count):
        scene = sample_scene(rng)
        exchange = ask(scene, "describe", rng) if i % 2 == 0 else ask_any(scene, rng)
        questions.append(Question(exchange.question, render_heldout(scene, rng)))
    return questions
