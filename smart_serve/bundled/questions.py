"""Questions about a scene and their answers in whole sentences."""

import msgspec
import numpy as np

from smart_serve.bundled import phrasing
from smart_serve.bundled.phrasing import NUMBER_WORDS, vary
from smart_serve.bundled.scene import COLOURS, KINDS, PLACES, Scene, Shape

OFF_TOPIC_ANSWER = "I can only talk about the shapes in the picture."
NO_PICTURE_ANSWER = "There is no picture."
GREETING_ANSWER = "Hello! Ask me about the shapes in a picture."
ABILITIES_ANSWER = (
    "I can describe a picture of coloured shapes, count the shapes, name their colours and say "
    "what is at each place."
)
# Topics about a picture and how often each is drawn; "colour" needs a kind that occurs. Counting
# some of the shapes is what a small model learns last, so it is asked most often.
TOPIC_WEIGHTS = {
    "count_all": 0.08,
    "count_some": 0.40,
    "colour": 0.14,
    "place": 0.18,
    "yes_no": 0.16,
    "describe": 0.0,
    "off_topic": 0.04,
}


class Exchange(msgspec.Struct, frozen=True):
    """One question and its answer."""

    topic: str
    question: str
    answer: str


def ask(scene: Scene, topic: str, rng: np.random.Generator) -> Exchange:
    """A question of a topic about the scene, in one of its phrasings, with the right answer."""
    question, answer = _TOPICS[topic](scene, rng)
    return Exchange(topic, vary(question, rng), answer)


def ask_any(scene: Scene, rng: np.random.Generator) -> Exchange:
    """A question of a random topic, descriptions left out."""
    topics, weights = zip(*TOPIC_WEIGHTS.items(), strict=True)
    return ask(scene, str(rng.choice(topics, p=weights)), rng)


def ask_without_picture(rng: np.random.Generator) -> Exchange:
    """A text-only question: a greeting, about the model, about no picture, or off the topic."""
    kind = rng.random()
    if kind < 0.25:
        question, answer = str(rng.choice(phrasing.GREETINGS)), GREETING_ANSWER
    elif kind < 0.45:
        question, answer = str(rng.choice(phrasing.ABILITIES)), ABILITIES_ANSWER
    elif kind < 0.6:
        question, answer = str(rng.choice(phrasing.DESCRIBE)), NO_PICTURE_ANSWER
    elif kind < 0.75:
        topic = str(rng.choice(["count_all", "count_some", "place", "yes_no"]))
        question, answer = _TOPICS[topic](Scene(()), rng)[0], NO_PICTURE_ANSWER
    else:
        question, answer = phrasing.off_topic(rng), OFF_TOPIC_ANSWER
    return Exchange("text_only", vary(question, rng), answer)


def describe(scene: Scene) -> str:
    """The description: an opening, one sentence per shape row by row, and a closing."""
    sentences = [f"The picture shows {_counted(len(scene.shapes), 'shape')} on a plain background."]
    for shape in scene.shapes:
        sentences.append(f"At the {PLACES[shape.place]} there is {_full_name(shape)}.")
    sentences.append("There is nothing else in the picture.")
    return " ".join(sentences)


def _counted(count: int, noun: str) -> str:
    return f"{NUMBER_WORDS[count]} {noun}" + ("" if count == 1 else "s")


def _there_are(count: int, noun: str) -> str:
    return f"There {'is' if count == 1 else 'are'} {_counted(count, noun)}."


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _full_name(shape: Shape) -> str:
    return f"a {shape.size} {shape.colour} {shape.kind}"


def _count_all(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    return str(rng.choice(phrasing.COUNT_ALL)), _there_are(len(scene.shapes), "shape")


def _count_some(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Counts a kind, a colour or both; half of the questions are about what occurs."""
    kind, colour = _kind_and_colour(scene, rng)
    narrowing = rng.random()
    if narrowing < 0.45:
        colour = None
    elif narrowing < 0.8:
        kind = None
    noun = f"{colour} {kind or 'shape'}" if colour else f"{kind}"
    question = str(rng.choice(phrasing.COUNT_SOME)).format(things=f"{noun}s")
    return question, _there_are(len(scene.of(kind, colour)), noun)


def _kind_and_colour(scene: Scene, rng: np.random.Generator) -> tuple[str | None, str | None]:
    if scene.shapes and rng.random() < 0.6:
        shape = scene.shapes[int(rng.integers(len(scene.shapes)))]
        return shape.kind, shape.colour
    return str(rng.choice(KINDS)), str(rng.choice(COLOURS))


def _colour(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """The colour of the only shape of a kind; where no kind is alone, a plain count answers."""
    alone = [kind for kind in KINDS if len(scene.of(kind)) == 1]
    kind = str(rng.choice(alone if alone and rng.random() < 0.93 else KINDS))
    shapes = scene.of(kind)
    question = str(rng.choice(phrasing.COLOUR_OF)).format(kind=kind)
    if len(shapes) != 1:
        return question, _there_are(len(shapes), kind)
    return question, f"The {kind} is {shapes[0].colour}."


def _place(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    place = int(rng.integers(len(PLACES)))
    if scene.shapes and rng.random() < 0.5:
        place = scene.shapes[int(rng.integers(len(scene.shapes)))].place
    question = str(rng.choice(phrasing.SHAPE_AT)).format(place=PLACES[place])
    shape = scene.at(place)
    if shape is None:
        return question, f"There is nothing at the {PLACES[place]}."
    return question, f"There is {_full_name(shape)} at the {PLACES[place]}."


def _yes_no(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Half yes; of the noes, half are near misses: the kind of one shape, another's colour."""
    kind, colour = str(rng.choice(KINDS)), str(rng.choice(COLOURS))
    if scene.shapes and rng.random() < 0.75:
        first, second = rng.integers(len(scene.shapes), size=2).tolist()
        kind = scene.shapes[first].kind
        colour = scene.shapes[first if rng.random() < 0.6 else second].colour
    name = f"{colour} {kind}"
    question = str(rng.choice(phrasing.IS_THERE)).format(thing=_with_article(name))
    if scene.of(kind, colour):
        return question, f"Yes, there is {_with_article(name)}."
    return question, f"No, there is no {name}."


def _describe(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    return str(rng.choice(phrasing.DESCRIBE)), describe(scene)


def _off_topic(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Off-topic questions; a greeting gets a greeting, with a picture too."""
    kind = rng.random()
    if kind < 0.12:
        return str(rng.choice(phrasing.GREETINGS)), GREETING_ANSWER
    if kind < 0.2:
        return str(rng.choice(phrasing.ABILITIES)), ABILITIES_ANSWER
    return phrasing.off_topic(rng), OFF_TOPIC_ANSWER


_TOPICS = {
    "count_all": _count_all,
    "count_some": _count_some,
    "colour": _colour,
    "place": _place,
    "yes_no": _yes_no,
    "describe": _describe,
    "off_topic": _off_topic,
}
