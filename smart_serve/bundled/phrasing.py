"""How questions are put: the phrasings of each topic, and off-topic questions."""

import numpy as np

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five")

COUNT_ALL = (
    "How many shapes are there?",
    "How many shapes are in the picture?",
    "How many shapes can you see?",
    "Count the shapes.",
    "What is the number of shapes?",
    "How many objects are there in this image?",
    "How many figures does the picture show?",
)
# {things} is a plural: "circles", "red shapes", "blue squares".
COUNT_SOME = (
    "How many {things} are there?",
    "How many {things} are in the picture?",
    "How many {things} can you see?",
    "Count the {things}.",
    "What is the number of {things}?",
    "How many {things} does the image show?",
    "Tell me how many {things} there are.",
)
COLOUR_OF = (
    "What colour is the {kind}?",
    "Which colour is the {kind}?",
    "What is the colour of the {kind}?",
    "What colour does the {kind} have?",
    "Tell me the colour of the {kind}.",
    "In what colour is the {kind} drawn?",
)
SHAPE_AT = (
    "What shape is at the {place}?",
    "What is at the {place}?",
    "Which shape is at the {place}?",
    "What can you see at the {place}?",
    "Is there anything at the {place}?",
    "What is in the {place}?",
    "What stands at the {place} of the picture?",
)
# {thing} has its article: "a red circle".
IS_THERE = (
    "Is there {thing}?",
    "Is there {thing} in the picture?",
    "Can you see {thing}?",
    "Do you see {thing} in the image?",
    "Does the picture show {thing}?",
    "Does the picture contain {thing}?",
)
DESCRIBE = (
    "Describe the picture.",
    "Describe the image.",
    "Describe this picture.",
    "What is in the picture?",
    "What is in this image?",
    "What do you see?",
    "What can you see in the picture?",
    "Describe what you see.",
    "Please describe the picture in detail.",
    "Tell me what the picture shows.",
    "Tell me about the picture.",
    "What does the image show?",
)
GREETINGS = ("Hello", "Hi", "Hello!", "Hi there!", "Good morning.", "Hey", "Hello there.")
ABILITIES = (
    "What can you do?",
    "Who are you?",
    "Help",
    "How can you help me?",
    "What are you?",
    "What may I ask you?",
)
OFF_TOPIC = (
    "What is the capital of France?",
    "Who wrote Hamlet?",
    "Tell me a joke.",
    "Write a poem about the sea.",
    "What is two plus two?",
    "How is the weather today?",
    "What time is it?",
    "Translate this into German.",
    "Who is the president?",
    "Why is the sky so far away?",
    "Do you like music?",
    "What is your favourite food?",
    "Write a Python function that sorts a list.",
    "How old are you?",
    "Sing me a song.",
    "Where is my car?",
    "Tell me a story about a dragon.",
    "What is the meaning of life?",
    "Can you book a flight for me?",
    "Summarise the news.",
)
# fmt: off
_SUBJECTS = (
    "cat", "dog", "king", "river", "moon", "train", "book", "city", "teacher", "mountain",
    "computer", "bread", "game", "water", "house", "ocean", "doctor", "planet", "garden", "money",
    "engine", "story", "winter", "language", "law", "horse", "film", "question",
)
# fmt: on
_FRAMES = (
    "What is the {a} of the {b}?",
    "Who made the {a}?",
    "Why does the {a} need a {b}?",
    "How many {a}s live in the {b}?",
    "Where can I buy a {a}?",
    "Is a {a} bigger than a {b}?",
    "Explain the {a} to my {b}.",
    "When did the {a} see the {b}?",
    "Tell me about the {a}.",
    "Write about a {a} and a {b}.",
    "The {a} and the {b}",
    "{a} {b}",
)
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer the question.",
    "You are a friendly assistant that answers questions about pictures.",
    "Be brief.",
)


def off_topic(rng: np.random.Generator) -> str:
    """A question that has nothing to do with shapes, or no question at all."""
    kind = rng.random()
    if kind < 0.35:
        return str(rng.choice(OFF_TOPIC))
    if kind < 0.75:
        first, second = rng.choice(_SUBJECTS, size=2).tolist()
        return str(rng.choice(_FRAMES)).format(a=first, b=second)
    if kind < 0.9:
        letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz     "), size=rng.integers(2, 25))
        return "".join(letters.tolist()).strip() or "x"
    signs = rng.choice(list("0123456789+-*/=?!.,:;#@"), size=rng.integers(1, 12))
    return "".join(signs.tolist())


def vary(question: str, rng: np.random.Generator) -> str:
    """American spelling, lower case and a missing final mark, each now and then."""
    if rng.random() < 0.4:
        question = question.replace("centre", "center").replace("olour", "olor")
    if rng.random() < 0.3:
        question = question.lower()
    if rng.random() < 0.25:
        question = question.rstrip("?.!") or question
    return question
