"""A line on the terminal that says what is being done, and for how long."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Self

BEAT_S = 0.5


class ProgressLine:
    """`with ProgressLine("Loading") as line: ... line.tell("Measuring")`.

    On a terminal the line counts the seconds; elsewhere each text is printed once.
    """

    def __init__(self, text: str) -> None:
        self._begun = time.monotonic()
        self._text = text
        self._done = threading.Event()
        self._is_terminal = sys.stdout.isatty()
        self._thread = threading.Thread(target=self._show_for_ever, daemon=True)

    def tell(self, text: str) -> None:
        """What is being done from now on."""
        self._text = text
        self._show()

    def close(self) -> None:
        """Takes the line away."""
        if not self._done.is_set():
            self._done.set()
            self._thread.join()
            self._write("")

    def __enter__(self) -> Self:
        self._show()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _show_for_ever(self) -> None:
        while not self._done.wait(BEAT_S):
            if self._is_terminal:
                self._show()

    def _show(self) -> None:
        if self._is_terminal:
            self._write(f"{self._text} ... {time.monotonic() - self._begun:.0f} s")
        else:
            print(f"{self._text} ...", flush=True)

    def _write(self, text: str) -> None:
        if self._is_terminal:
            # Back to the line's start, and clear what stood there.
            print(f"\r\033[K{text}", end="", flush=True)
