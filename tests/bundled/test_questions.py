"""Questions: every answer is a whole sentence and true of the scene."""

import numpy as np
import pytest

from smart_serve.bundled import phrasing
from smart_serve.bundled.questions import (
    GREETING_ANSWER,
    NO_PICTURE_ANSWER,
    OFF_TOPIC_ANSWER,
    TOPIC_WEIGHTS,
    ask,
    ask_any,
    ask_without_picture,
    describe,
)
from smart_serve.bundled.scene import PLACES, Scene, Shape, sample_scene

SCENE = Scene(
    (
        Shape("circle", "red", "small", 0),
        Shape("circle", "orange", "large", 4),
        Shape("square", "orange", "large", 8),
    )
)


def _answers(topic: str) -> dict[str, str]:
    """Plain spellings of 400 questions, with their answers."""
    rng = np.random.default_rng(0)
    asked = (ask(SCENE, topic, rng) for _ in range(400))
    return {e.question.lower().rstrip("?.").replace("olor", "olour"): e.answer for e in asked}


def test_counting() -> None:
    assert set(_answers("count_all").values()) == {"There are three shapes."}
    some = _answers("count_some")
    assert some["how many circles are there"] == "There are two circles."
    assert some["how many triangles are there"] == "There are no triangles."
    assert some["how many red shapes are there"] == "There is one red shape."
    assert some["how many orange squares are there"] == "There is one orange square."


def test_colour_of_the_only_one() -> None:
    answers = _answers("colour")
    assert answers["what colour is the square"] == "The square is orange."
    assert answers["what colour is the circle"] == "There are two circles."
    assert answers["what colour is the triangle"] == "There are no triangles."


def test_places() -> None:
    answers = _answers("place")
    assert answers["what is at the top left"] == "There is a small red circle at the top left."
    assert answers["what is at the centre"] == "There is a large orange circle at the centre."
    assert answers["what is at the top right"] == "There is nothing at the top right."


def test_yes_and_no() -> None:
    answers = _answers("yes_no")
    assert answers["is there a red circle"] == "Yes, there is a red circle."
    assert answers["is there an orange square"] == "Yes, there is an orange square."
    assert answers["is there a red square"] == "No, there is no red square."


def test_description_names_every_shape_row_by_row() -> None:
    assert describe(SCENE) == (
        "The picture shows three shapes on a plain background. "
        "At the top left there is a small red circle. "
        "At the centre there is a large orange circle. "
        "At the bottom right there is a large orange square. "
        "There is nothing else in the picture."
    )


def test_each_topic_has_five_phrasings() -> None:
    for phrasings in (
        phrasing.COUNT_ALL,
        phrasing.COUNT_SOME,
        phrasing.COLOUR_OF,
        phrasing.SHAPE_AT,
        phrasing.IS_THERE,
        phrasing.DESCRIBE,
    ):
        assert len(set(phrasings)) >= 5


def test_spellings_vary() -> None:
    rng = np.random.default_rng(0)
    questions = {ask(SCENE, "place", rng).question for _ in range(500)}
    assert any("center" in question for question in questions)
    assert any("centre" in question for question in questions)
    assert any(question == question.lower() for question in questions)
    assert any(not question.endswith(("?", ".")) for question in questions)


@pytest.mark.parametrize("topic", sorted(TOPIC_WEIGHTS))
def test_answers_end_as_sentences_for_any_scene(topic: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        exchange = ask(sample_scene(rng), topic, rng)
        assert exchange.question
        assert exchange.answer.endswith(".")


def test_random_topics_and_text_only_questions() -> None:
    rng = np.random.default_rng(4)
    topics = {ask_any(SCENE, rng).topic for _ in range(300)}
    assert topics == set(TOPIC_WEIGHTS) - {"describe"}
    answers = {ask_without_picture(rng).answer for _ in range(300)}
    assert {NO_PICTURE_ANSWER, OFF_TOPIC_ANSWER, GREETING_ANSWER} <= answers
    assert not any(place in answer for answer in answers for place in PLACES)
