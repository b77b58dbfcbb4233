"""A request whose tokens cannot be drawn ends alone; the others' are drawn as if it were greedy."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace

import msgspec
import torch

from smart_serve.engine.sampler import Drawn, draw
from smart_serve.engine.sequence import Sequence
from smart_serve.messages import SamplingParams
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.tree import Forest

_LOG = logging.getLogger(__name__)
_PLAIN = SamplingParams(temperature=0.0)


def draw_or_tell_whose_fault(
    logits: torch.Tensor,
    sequences: Seq[Sequence],
    forest: Forest,
    laws: DraftLaws | None,
    *,
    wants_roots: bool,
) -> Drawn:
    """`draw`, with `faulty` filled in if it raised for some requests and not for others. Raises
    what `draw` does when no single request is to blame, and for want of memory."""

    def drawn(some: Seq[Sequence]) -> Drawn:
        return draw(logits, some, forest, laws, wants_roots=wants_roots)

    try:
        return drawn(sequences)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        _LOG.exception("tokens could not be drawn; looking for the request that is to blame")
        plain = [_plain(sequence) for sequence in sequences]
        faulty = {
            place
            for place, sequence in enumerate(sequences)
            if _raises(drawn, [*plain[:place], sequence, *plain[place + 1 :]])
        }
        if not faulty:
            raise
        others = [plain[i] if i in faulty else one for i, one in enumerate(sequences)]
        found = drawn(others)
        return replace(found, faulty=found.faulty | {sequences[i].id for i in faulty})


def _plain(sequence: Sequence) -> Sequence:
    """It, as if its request asked for nothing but the likeliest tokens."""
    plain = copy.copy(sequence)
    plain.request = msgspec.structs.replace(sequence.request, sampling=_PLAIN)
    return plain


def _raises(drawn: Callable[[Seq[Sequence]], Drawn], sequences: Seq[Sequence]) -> bool:
    try:
        drawn(sequences)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _LOG.debug("this one is: %s", error)
        return True
    return False
