"""Text to token ids and back, from tokenizer.json alone: starts in milliseconds, without torch.

Text of a request can never become a special token here. Special tokens are known by name only to
the prompt builder, which places them where the model's own template does.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer

from smart_serve.errors import ClientError, ConfigError
from smart_serve.frontend.folder import int_list, read_json, read_optional_json, token_text
from smart_serve.frontend.pieces import is_byte_level, piece_bytes

_MEDIA_KEYS = (
    "image_token_index",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)
"""Ids that configurations name and tokenizers do not always mark as special."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class SpecialToken(msgspec.Struct, frozen=True):
    """A token that only the template may place."""

    id: int
    text: str
    strips_left: bool
    """Swallows the white space before it."""
    strips_right: bool


class TextTokenizer:
    """One model folder's tokenizer. Safe to share between threads."""

    def __init__(self, spec: dict[str, Any], eos_ids: frozenset[int], media_ids: frozenset[int]):
        """`spec`: the content of tokenizer.json; `media_ids` become special tokens."""
        added: list[dict[str, Any]] = spec.get("added_tokens") or []
        for entry in added:
            entry["special"] = bool(entry["special"]) or entry["id"] in media_ids
        self.special_tokens = tuple(_special(entry) for entry in added if entry["special"])
        self.special_ids = frozenset(token.id for token in self.special_tokens)
        self.eos_ids = eos_ids
        self.media_ids = media_ids
        """Stand for pictures and their frames; only the prompt builder may place them."""
        try:
            self._backend = Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the binding raises bare Exception
            raise ConfigError("tokenizer.json cannot be loaded") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        self.prefix_ids = tuple(self._backend.encode("", add_special_tokens=True).ids)
        self.byte_ids = frozenset(
            index
            for text, index in self._backend.get_vocab().items()
            if _BYTE_TOKEN.fullmatch(text)
        )
        self._byte_level = is_byte_level(spec.get("decoder"))
        self._backend.encode_special_tokens = True
        # Some tokenizers treat the start of a string as the start of a word. Text behind a special
        # token is therefore encoded behind a private token, which no request can guess.
        self._guard = f"\ue004{secrets.token_hex(16)}\ue005"
        self._backend.add_tokens([AddedToken(self._guard, special=False, normalized=False)])

    @classmethod
    def from_folder(cls, folder: Path | str) -> TextTokenizer:
        """Reads tokenizer.json and the configurations beside it; ConfigError when it cannot."""
        path = Path(folder)
        if not (path / "tokenizer.json").is_file():
            raise ConfigError(
                f"{path} has no tokenizer.json; for folders from before it was usual, load the "
                "tokenizer with transformers and call save_pretrained"
            )
        spec = read_json(path / "tokenizer.json")
        config = read_optional_json(path / "config.json")
        text_config = config.get("text_config") or {}
        generation = read_optional_json(path / "generation_config.json")
        ids = {entry["content"]: entry["id"] for entry in spec.get("added_tokens") or []}
        eos = {
            *int_list(generation.get("eos_token_id")),
            *int_list(config.get("eos_token_id")),
            *int_list(text_config.get("eos_token_id")),
        }
        named = token_text(read_optional_json(path / "tokenizer_config.json").get("eos_token"))
        if named in ids:
            eos.add(ids[named])
        media = {index for key in _MEDIA_KEYS for index in int_list(config.get(key))}
        return cls(spec, frozenset(eos), frozenset(media))

    def encode(self, text: str, at_start: bool = True) -> list[int]:
        """Ordinary tokens of `text`, never a special one, whatever it spells.

        `at_start`: nothing stands before it; otherwise it is encoded as behind a special token.
        """
        if not text:
            return []
        if self._guard in text:
            raise ClientError("the text cannot be encoded", code="invalid_prompt")
        source = text if at_start else self._guard + text
        encoding = self._backend.encode(source, add_special_tokens=False)
        skip = 0 if at_start else 1
        ids: list[int] = encoding.ids[skip:]
        if self.special_ids.isdisjoint(ids):
            return ids
        # The vocabulary's own merges spelled a special token: cut each such place in two.
        shift = len(source) - len(text)
        spans = [
            (start - shift, end - shift)
            for index, (start, end) in zip(ids, encoding.offsets[skip:], strict=True)
            if index in self.special_ids
        ]
        return self._encode_cut(text, spans, at_start)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """ClientError `invalid_token` for an id outside the vocabulary."""
        if min(ids, default=0) < 0 or max(ids, default=0) >= self.vocab_size:
            message = f"token ids are between 0 and {self.vocab_size - 1}"
            raise ClientError(message, code="invalid_token", param=param)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out; incomplete UTF-8 shows as U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """What one token adds to a text; a special one is told by its name."""
        piece = self._backend.id_to_token(token_id)
        if piece is None:
            return b""
        if token_id in self.byte_ids:
            return bytes([int(piece[3:5], 16)])
        return (
            piece.encode() if token_id in self.special_ids else piece_bytes(piece, self._byte_level)
        )

    def _encode_cut(self, text: str, spans: list[tuple[int, int]], at_start: bool) -> list[int]:
        if any(end - start < 2 for start, end in spans):
            raise ClientError("the text cannot be encoded", code="invalid_prompt")
        cuts = [0, *(start + 1 for start, _ in spans), len(text)]
        ids: list[int] = []
        for start, end in itertools.pairwise(cuts):
            ids += self.encode(text[start:end], at_start and start == 0)
        return ids


def _special(entry: dict[str, Any]) -> SpecialToken:
    return SpecialToken(
        id=entry["id"],
        text=entry["content"],
        strips_left=bool(entry.get("lstrip")),
        strips_right=bool(entry.get("rstrip")),
    )
