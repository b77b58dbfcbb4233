"""What targets have asked of a drafter's server, and how much of it was answered at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.step_channel.connection import Connection
from smart_serve.drafters.protocol import DraftBatch


@dataclass(frozen=True, slots=True)
class Question:
    """One target's, for its whole batch."""

    connection: Connection
    number: int
    """By which the target knows the answer."""
    batch: DraftBatch


@dataclass(slots=True)
class DraftTotals:
    """Since the server started. Its thread counts; others may read."""

    questions: int = 0
    drafts: int = 0
    """That answered them; less than one for each where several came together."""
    sequences: int = 0

    def add(self, batches: Sequence[DraftBatch]) -> None:
        """They are drafted for at once."""
        self.questions += len(batches)
        self.drafts += 1
        self.sequences += sum(len(batch.inputs) for batch in batches)
