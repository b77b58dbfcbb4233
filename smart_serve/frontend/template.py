"""The model's own chat template, rendered in a sandbox exactly as transformers renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from smart_serve.errors import ClientError, ConfigError
from smart_serve.frontend.folder import read_json, read_optional_json, token_text

_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
_PROBE = "probe"


class ChatTemplate:
    """Renders a list of message dictionaries to the prompt text."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens`: values of bos_token and so on. ConfigError if it does not compile."""
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError("the model's chat template does not compile") from error
        self._variables = dict(special_tokens)
        self.takes_strings = self._shows_probe(_PROBE)
        self.takes_parts = self._shows_probe([{"type": "text", "text": _PROBE}])
        if not self.takes_strings and not self.takes_parts:
            raise ConfigError("the model's chat template does not show a user's text")

    @classmethod
    def from_folder(cls, folder: Path | str) -> ChatTemplate | None:
        """From chat_template.jinja, chat_template.json or tokenizer_config.json; None where the
        model brings no template (Vicuna 1.3)."""
        path = Path(folder)
        config = read_optional_json(path / "tokenizer_config.json")
        texts = {name: token_text(config.get(name)) for name in _TOKEN_NAMES}
        tokens = {name: text for name, text in texts.items() if text is not None}
        source = _source(path, config)
        return None if source is None else cls(source, tokens)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt up to where the assistant's answer begins.

        Errors: ClientError `invalid_messages` when the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError):
            # The template's own words are not ours to pass on, but its verdict is.
            raise ClientError(
                "the model's chat template refuses this sequence of messages",
                code="invalid_messages",
                param="messages",
            ) from None

    def _shows_probe(self, content: object) -> bool:
        try:
            text = self.render([{"role": "user", "content": content}])
        except ClientError:
            return False
        # A template that prints the list itself would show its keys too.
        return _PROBE in text and "'type'" not in text


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # Jinja's own filter escapes HTML characters.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _source(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    as_json = folder / "chat_template.json"
    config = read_json(as_json) if as_json.is_file() else tokenizer_config
    source = config.get("chat_template")
    if isinstance(source, list):  # several by name, as some tokenizers have them
        by_name = {entry.get("name"): entry.get("template") for entry in source}
        source = by_name.get("default")
    if source is not None and not isinstance(source, str):
        raise ConfigError(f"{folder}: the chat template is not a text")
    return source
