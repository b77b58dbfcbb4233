"""Values of the commands' options: what cannot be meant is refused in one sentence."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable

from smart_serve.config import POLICY_NAMES, is_policy

MAX_BATCH = 4096
"""Far beyond what a replica runs; a slip of the finger must not take the machine down."""


def batches(text: str) -> tuple[int, ...]:
    """`1,4,16`."""
    return tuple(batch(word) for word in text.split(","))


def batch(text: str) -> int:
    """A whole number of sequences."""
    return whole_number(text, MAX_BATCH)


def temperatures(text: str) -> tuple[float, ...]:
    """`0,0.8`, each from 0 to 2."""
    values = numbers(text)
    if max(values) > 2.0:
        raise argparse.ArgumentTypeError(f"'{text}': a temperature is at most 2")
    return values


def policies(text: str) -> tuple[str, ...]:
    """`off,eagle2,smart`."""
    return names(text, *POLICY_NAMES)


def policies_and_generate(text: str) -> tuple[str, ...]:
    """Policies, `off` among them, and `transformers`."""
    found = names(text, *POLICY_NAMES, "transformers")
    if "off" not in found:
        raise argparse.ArgumentTypeError("the speedups are against off: it must be among them")
    return found


def names(text: str, *known: str) -> tuple[str, ...]:
    """Words among `known`, or policies with numbers of their own; each once."""
    # A comma before a digit belongs to a policy: `delayed:2,1,3`.
    words = tuple(re.split(r",(?!\d)", text))
    for word in words:
        if word not in known and not is_policy(word):
            raise argparse.ArgumentTypeError(f"'{word}' is not one of {', '.join(known)}")
    if len(set(words)) != len(words):
        raise argparse.ArgumentTypeError(f"'{text}' names something twice")
    return words


def words_of(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """`a,b` of the `known`."""

    def parse(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f"'{word}' is not one of {', '.join(known)}")
        return words

    return parse


def numbers(text: str) -> tuple[float, ...]:
    """`0,1,5.5`."""
    return tuple(number(word) for word in text.split(","))


def share(text: str) -> float:
    """From 0 to 1."""
    value = number(text)
    if value > 1.0:
        raise argparse.ArgumentTypeError(f"'{text}' is more than 1")
    return value


def count(text: str) -> int:
    """A whole number from 1 on."""
    return whole_number(text, 10**6)


def whole_number(text: str, most: int) -> int:
    """From 1 to `most`."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to {most}")
    return int(text)


def number(text: str) -> float:
    """Finite and not negative."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 on")
    return value
