"""A progress bar for work that takes more than a moment."""

from __future__ import annotations

import sys

WIDTH = 24


def show_progress(what: str, done: int, total: int) -> None:
    """Redraw the bar on stderr's current line; the last call ends the line."""
    filled = WIDTH * done // total
    end = "\n" if done == total else ""
    bar = "█" * filled + "░" * (WIDTH - filled)
    print(f"\r{what} {bar} {done}/{total}", end=end, file=sys.stderr, flush=True)
