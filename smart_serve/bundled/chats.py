"""Training rows: several chats about one picture, packed behind one shared prefix.

Every chat sees the prefix (which holds the picture) and itself, and its positions go on from
the prefix; so a row teaches what as many separate prompts would, and the image tokens are
computed once. Text-only chats ride along with a `<s>` of their own and do not see the prefix.
"""

import msgspec
import numpy as np
from transformers import PreTrainedTokenizerFast

from smart_serve.bundled.architecture import IMAGE_TOKENS
from smart_serve.bundled.phrasing import GREETINGS, SYSTEM_PROMPTS
from smart_serve.bundled.questions import (
    GREETING_ANSWER,
    Exchange,
    ask,
    ask_any,
    ask_without_picture,
)
from smart_serve.bundled.scene import Scene
from smart_serve.bundled.tokenizer import IMAGE

Message = dict[str, object]


class Chat(msgspec.Struct, frozen=True):
    """Token ids of one chat, and for each whether the model is to say it."""

    tokens: tuple[int, ...]
    is_answer: tuple[bool, ...]
    sees_prefix: bool


class Row(msgspec.Struct, frozen=True):
    """A prefix and the chats behind it."""

    prefix: tuple[int, ...]
    chats: tuple[Chat, ...]


class RowWriter:
    """Writes random rows about scenes, tokenised exactly as the chat template does it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, row_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._row_tokens = row_tokens
        self._image = int(tokenizer.convert_tokens_to_ids(IMAGE))
        self._speaker = tuple(tokenizer.encode(" ASSISTANT:", add_special_tokens=False))

    def write(self, scene: Scene, rng: np.random.Generator) -> Row:
        """A row with a description, questions, now and then a chat of several turns."""
        opening = self._opening(rng)
        prefix = self._encode([*opening, _user("", picture=True)])
        # The template ends a user's text with a space; the question stands before it.
        prefix = prefix[:-1] if prefix[-1] != self._image_end() else prefix
        chats: list[Chat] = []
        room = self._row_tokens - len(prefix)
        while True:
            chat = self._chat(scene, opening, len(prefix), len(chats), rng)
            if len(chat.tokens) > room:
                return Row(tuple(prefix), tuple(chats))
            chats.append(chat)
            room -= len(chat.tokens)

    def _image_end(self) -> int:
        return int(self._tokenizer.encode("\n", add_special_tokens=False)[0])

    def _opening(self, rng: np.random.Generator) -> list[Message]:
        """What stands before the picture: mostly nothing, or a system prompt, or a greeting."""
        kind = rng.random()
        if kind < 0.06:
            return [{"role": "system", "content": str(rng.choice(SYSTEM_PROMPTS))}]
        if kind < 0.10:
            return [_user(str(rng.choice(GREETINGS))), _assistant(GREETING_ANSWER)]
        return []

    def _chat(
        self,
        scene: Scene,
        opening: list[Message],
        prefix_length: int,
        index: int,
        rng: np.random.Generator,
    ) -> Chat:
        """The first chat opens with a description; a few later ones have no picture."""
        if index > 0 and rng.random() < 0.09:
            exchanges = [ask_without_picture(rng) for _ in range(_turns(rng))]
            return self._cut(self._encode(_messages([], exchanges, False)), 0)
        exchanges = [ask_any(scene, rng) for _ in range(_turns(rng))]
        if index == 0:
            exchanges[int(rng.integers(len(exchanges)))] = ask(scene, "describe", rng)
        tokens = self._encode(_messages(opening, exchanges, True))
        return self._cut(tokens, prefix_length)

    def _cut(self, tokens: list[int], prefix_length: int) -> Chat:
        """Leave the shared prefix away and mark the answers, up to and with `</s>`."""
        is_answer = [False] * len(tokens)
        answering = False
        for at, token in enumerate(tokens):
            is_answer[at] = answering
            if token == self._tokenizer.eos_token_id:
                answering = False
            elif tuple(tokens[max(0, at - 1) : at + 1]) == self._speaker:
                answering = True
        tail, said = tokens[prefix_length:], is_answer[prefix_length:]
        return Chat(tuple(tail), tuple(said), sees_prefix=prefix_length > 0)

    def _encode(self, messages: list[Message]) -> list[int]:
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        text = str(text).replace(IMAGE, IMAGE * IMAGE_TOKENS)
        return list(self._tokenizer(text)["input_ids"])


def _user(text: str, picture: bool = False) -> Message:
    parts = [{"type": "image"}] if picture else []
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _messages(opening: list[Message], exchanges: list[Exchange], picture: bool) -> list[Message]:
    messages = list(opening)
    for turn, exchange in enumerate(exchanges):
        messages.append(_user(exchange.question, picture and turn == 0))
        messages.append(_assistant(exchange.answer))
    return messages


def _turns(rng: np.random.Generator) -> int:
    """Turns of a chat; most have one."""
    return int(rng.choice([1, 2, 3, 5], p=[0.8, 0.1, 0.07, 0.03]))
