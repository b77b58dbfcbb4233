"""Questions about held-out pictures, by topic, for evaluation."""

from collections.abc import Iterator

import msgspec
import numpy as np
from PIL import Image

from smart_serve.bundled.questions import Exchange, ask, ask_any
from smart_serve.bundled.render_heldout import render_heldout
from smart_serve.bundled.scene import KINDS, Scene, sample_scene

# Topics whose answers depend on the picture.
TOPICS = ("count_all", "count_some", "colour", "place", "yes_no", "describe")
# "second_turn" asks one of these after another question; "off_topic" has a fixed answer.
ALL_TOPICS = (*TOPICS, "second_turn", "off_topic")


class Trial(msgspec.Struct, frozen=True):
    """A picture, what was said about it before, a question, and the right answer."""

    picture: Image.Image
    exchange: Exchange
    history: tuple[Exchange, ...] = ()


def trials(pictures: int, seed: int, topic: str, blank: bool = False) -> Iterator[Trial]:
    """One question of a topic about each held-out picture; `blank` hides the shapes."""
    rng = np.random.default_rng((seed, ALL_TOPICS.index(topic)))
    for _ in range(pictures):
        asked = str(rng.choice(TOPICS)) if topic == "second_turn" else topic
        scene = _askable(asked, rng)
        picture = render_heldout(Scene(()) if blank else scene, rng)
        history = (ask_any(scene, rng),) if topic == "second_turn" else ()
        yield Trial(picture, ask(scene, asked, rng), history)


def _askable(topic: str, rng: np.random.Generator) -> Scene:
    """A scene in which the question has its usual answer: some kind occurs just once."""
    while True:
        scene = sample_scene(rng)
        if topic != "colour" or any(len(scene.of(kind)) == 1 for kind in KINDS):
            return scene
