"""Tokens back to text while they arrive, without showing anything that must be taken back."""

from __future__ import annotations

from collections.abc import Sequence

from smart_serve.frontend.tokenizer import TextTokenizer

_REPLACEMENT = "\ufffd"
"""What a decoder shows for bytes that are no character (yet)."""


class Detokenizer:
    """One answer's text. What it returns, joined, is the decoded answer up to the stop string.

    Held back are incomplete characters and any ending that may be the start of a stop string. If
    several stop strings occur, the one that is complete first ends the answer.
    """

    def __init__(self, tokenizer: TextTokenizer, stop: tuple[str, ...] = ()) -> None:
        self.tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        # Decoding starts a little before the news: some decoders treat the first token specially.
        self._context_start = 0
        self._shown_end = 0
        self._held = ""
        self.finished_by_stop = False
        """A stop string was met; everything after it is dropped."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes the next tokens; returns the text that is now safe to show (maybe "")."""
        if self.finished_by_stop:
            return ""
        special = self.tokenizer.special_ids
        self._ids += [index for index in token_ids if index not in special]
        return self._release(self._decode_complete(), final=False)

    def flush(self) -> str:
        """The rest, after the last token: no more text will come."""
        if self.finished_by_stop:
            return ""
        text = self._decode_news()
        self._context_start = self._shown_end = len(self._ids)
        return self._release(text, final=True)

    def _decode_complete(self) -> str:
        """News up to the last character that no later token can change."""
        if self._shown_end == len(self._ids) or self._ids[-1] in self.tokenizer.byte_ids:
            # A run of byte tokens is decoded as a whole, so its characters may still change.
            return ""
        text = self._decode_news()
        if text.endswith(_REPLACEMENT):
            return ""
        self._context_start, self._shown_end = self._shown_end, len(self._ids)
        return text

    def _decode_news(self) -> str:
        window = self._ids[self._context_start :]
        context = self._ids[self._context_start : self._shown_end]
        return self.tokenizer.decode(window)[len(self.tokenizer.decode(context)) :]

    def _release(self, news: str, final: bool) -> str:
        text, self._held = self._held + news, ""
        ends = [
            (start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0
        ]
        if ends:
            self.finished_by_stop = True
            return text[: min(ends)[1]]
        keep = 0 if final else self._pending(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _pending(self, text: str) -> int:
        """Characters at the end of `text` with which some stop string begins."""
        longest = min(len(text), max(map(len, self._stop), default=1) - 1)
        for size in range(longest, 0, -1):
            if any(len(stop) > size and stop.startswith(text[-size:]) for stop in self._stop):
                return size
        return 0
