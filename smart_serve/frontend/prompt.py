"""From a conversation and its pictures to the tokens that the target reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from smart_serve.errors import ClientError, ConfigError
from smart_serve.frontend.chat import ROLES, ChatMessage, ImagePart, TextPart
from smart_serve.frontend.folder import image_token_id, read_json
from smart_serve.frontend.origin import Piece, render_pieces
from smart_serve.frontend.template import ChatTemplate
from smart_serve.frontend.tokenizer import SpecialToken, TextTokenizer
from smart_serve.limits import Limits
from smart_serve.messages import ImageSpan
from vision.image import CheckedImage
from vision.tokens import ImageTokenCounter, load_counter


class Prompt(msgspec.Struct, frozen=True):
    """What the engine reads: each picture stands as a run of image tokens."""

    token_ids: tuple[int, ...]
    image_spans: tuple[ImageSpan, ...]


def check_length(prompt: Prompt, max_tokens: int, context: int, param: str = "messages") -> None:
    """ClientError `context_length_exceeded` when prompt and answer do not fit in `context`."""
    if len(prompt.token_ids) + max_tokens > context:
        raise ClientError(
            f"the model's context is {context} tokens; the prompt has {len(prompt.token_ids)} "
            f"(pictures included) and max_tokens asks for {max_tokens} more",
            code="context_length_exceeded",
            param=param,
        )


class PromptBuilder:
    """Applies one model's chat template. Holds no state between calls; share it freely."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        template: ChatTemplate | None,
        image_token_id: int | None,
        counter: ImageTokenCounter | None,
        context_tokens: int,
        limits: Limits,
    ) -> None:
        """`image_token_id` and `counter` are None for a model that takes no pictures."""
        self.tokenizer = tokenizer
        self.context_tokens = context_tokens
        """The model's own context length; check_length takes it, or less."""
        self._template = template
        self._image_token_id = image_token_id
        self._counter = counter
        self._limits = limits
        self._by_text = {token.text: token for token in tokenizer.special_tokens}
        longest_first = sorted(self._by_text, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @classmethod
    def from_folder(cls, folder: Path | str, limits: Limits | None = None) -> PromptBuilder:
        """From a model folder's JSON files; ConfigError when one is missing or wrong."""
        path = Path(folder)
        config = read_json(path / "config.json")
        takes_images = "vision_config" in config
        text_config = config.get("text_config") or config
        context = text_config.get("max_position_embeddings")
        if not isinstance(context, int):
            raise ConfigError(f"{path}: the configuration has no max_position_embeddings")
        return cls(
            tokenizer=TextTokenizer.from_folder(path),
            template=ChatTemplate.from_folder(path),
            image_token_id=image_token_id(config) if takes_images else None,
            counter=load_counter(path) if takes_images else None,
            context_tokens=context,
            limits=limits or Limits(),
        )

    def build(self, messages: Sequence[ChatMessage], images: Sequence[CheckedImage]) -> Prompt:
        """The prompt of a conversation; `images` in the order of their places in it.

        Errors: ClientError, each cause with its own code.
        """
        self._check(messages, images)
        pieces = render_pieces(self._render, messages, self._special)
        token_ids: list[int] = []
        spans: list[ImageSpan] = []
        if self._needs_prefix(pieces):
            token_ids += self.tokenizer.prefix_ids
        at_start = True
        for run in self._runs(pieces):
            if isinstance(run, str):
                token_ids += self.tokenizer.encode(run, at_start)
            elif run.id == self._image_token_id:
                spans.append(self._span(images, len(spans), len(token_ids)))
                token_ids += [run.id] * spans[-1].length
            else:
                token_ids.append(run.id)
            at_start = False
        if len(spans) != len(images):
            raise _image_mismatch(len(spans), len(images))
        return Prompt(token_ids=tuple(token_ids), image_spans=tuple(spans))

    def build_raw(self, prompt: str, images: Sequence[CheckedImage] = ()) -> Prompt:
        """The prompt of a single question: one user turn, its pictures first."""
        if not images:
            return self.build([ChatMessage(role="user", content=prompt)], ())
        parts: tuple[TextPart | ImagePart, ...] = (ImagePart(),) * len(images)
        parts = (*parts, TextPart(text=prompt))
        return self.build([ChatMessage(role="user", content=parts)], images)

    def build_plain(self, prompt: str | Sequence[int]) -> Prompt:
        """The prompt of a text completion: no template, only the tokenizer's own prefix.

        Token ids are taken as they are; they cannot stand for pictures. Errors: ClientError
        `invalid_token`.
        """
        if isinstance(prompt, str):
            ids = (*self.tokenizer.prefix_ids, *self.tokenizer.encode(prompt))
            return Prompt(token_ids=ids, image_spans=())
        self.tokenizer.check_ids(prompt, "prompt")
        if not self.tokenizer.media_ids.isdisjoint(prompt):
            message = "token ids cannot stand for pictures"
            raise ClientError(message, code="invalid_token", param="prompt")
        return Prompt(token_ids=tuple(prompt), image_spans=())

    def _check(self, messages: Sequence[ChatMessage], images: Sequence[CheckedImage]) -> None:
        def refuse(bad: bool, code: str, message: str) -> None:
            if bad:
                raise ClientError(message, code=code, param="messages")

        texts = [text for message in messages for text in message.texts()]
        places = sum(message.num_images() for message in messages)
        limits = self._limits
        # Templates print roles as their own text, so a free role could spell a special token.
        odd = any(message.role not in ROLES for message in messages)
        refuse(odd, "invalid_role", f"a role must be one of {', '.join(ROLES)}")
        refuse(not images and not any(map(str.strip, texts)), "empty_prompt", "the prompt is empty")
        too_many = f"{len(images)} pictures; the limit is {limits.max_images}"
        refuse(len(images) > limits.max_images, "too_many_images", too_many)
        no_images = self._image_token_id is None and places + len(images) > 0
        refuse(no_images, "images_not_supported", "this model takes no pictures")
        chars = sum(map(len, texts))
        too_long = f"{chars} characters of text; the limit is {limits.max_text_chars}"
        refuse(chars > limits.max_text_chars, "prompt_too_long", too_long)
        if places != len(images):
            raise _image_mismatch(places, len(images))

    def _render(self, messages: Sequence[ChatMessage]) -> str:
        template = self._template
        if template is None:
            message = "this model has no chat template; ask for a text completion instead"
            raise ClientError(message, code="no_chat_template", param="messages")
        return template.render([_as_dict(message, template) for message in messages])

    def _runs(self, pieces: Sequence[Piece]) -> list[str | SpecialToken]:
        """Cuts the prompt at special tokens, which only the template's pieces can hold."""
        runs: list[str | SpecialToken] = []
        text = ""
        for piece in pieces:
            end = 0
            for match in () if piece.from_request else self._special.finditer(piece.text):
                token = self._by_text[match.group()]
                text += piece.text[end : match.start()]
                _append_text(runs, text.rstrip() if token.strips_left else text)
                runs.append(token)
                text, end = "", match.end()
            text += piece.text[end:]
        _append_text(runs, text)
        return runs

    def _needs_prefix(self, pieces: Sequence[Piece]) -> bool:
        """Whether the tokenizer's own prefix is missing.

        LLaVA's templates leave it to the processor, which adds it unless the text begins with it;
        for text models the template alone decides. Both as in transformers.
        """
        if self._image_token_id is None or not self.tokenizer.prefix_ids:
            return False
        first = self._runs(pieces[:1])[:1]
        given = [run.id for run in first if isinstance(run, SpecialToken)]
        return given != [self.tokenizer.prefix_ids[0]]

    def _span(self, images: Sequence[CheckedImage], index: int, start: int) -> ImageSpan:
        if index >= len(images) or self._counter is None:
            raise _image_mismatch(index + 1, len(images))
        image = images[index]
        tokens = self._counter.count(*image.upright_size_px)
        return ImageSpan(start, tokens.count, image.content_hash, tokens.grid)


def _as_dict(message: ChatMessage, template: ChatTemplate) -> dict[str, Any]:
    """In the form that the client chose, if the template shows that form."""
    content = message.content
    as_parts = not isinstance(content, str)
    if as_parts and not template.takes_parts and not message.num_images():
        return {"role": message.role, "content": "\n".join(message.texts())}
    if not as_parts and template.takes_strings:
        return {"role": message.role, "content": content}
    parts = (TextPart(text=content),) if isinstance(content, str) else content
    return {"role": message.role, "content": [msgspec.to_builtins(part) for part in parts]}


def _append_text(runs: list[str | SpecialToken], text: str) -> None:
    before = runs[-1] if runs else None
    if isinstance(before, SpecialToken) and before.strips_right:
        text = text.lstrip()
    if text:
        runs.append(text)


def _image_mismatch(places: int, images: int) -> ClientError:
    message = f"the messages have places for {places} pictures, but {images} came"
    return ClientError(message, code="image_count_mismatch", param="messages")
