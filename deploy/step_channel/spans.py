"""The drafter's spans: one for each traced sequence, from its first question to its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from opentelemetry.trace import Span

from deploy.spans import begin
from smart_serve.drafters.protocol import DraftBatch, Proposal


@dataclass(slots=True)
class _OpenSpan:
    span: Span
    steps: int = 0
    nodes: int = 0
    draft_ms: float = 0.0


class DraftSpans:
    """By the drafter's own sequence ids. Owned by the server's thread."""

    def __init__(self) -> None:
        self._open: dict[int, _OpenSpan] = {}

    def open(self, batch: DraftBatch) -> None:
        """Before the batch is drafted for; a sequence that is opened anew goes on in its span."""
        for one in batch.inputs:
            if one.trace_parent is not None and one.sequence_id not in self._open:
                self._open[one.sequence_id] = _OpenSpan(begin("draft", one.trace_parent))

    def add(self, batch: DraftBatch, proposal: Proposal) -> None:
        """What a step gave to each; its time is that of the whole batch."""
        if not self._open:
            return
        sizes, draft_ms = proposal.growth.forest.sizes, sum(proposal.layer_ms)
        for one, size in zip(batch.inputs, sizes.tolist(), strict=True):
            open_span = self._open.get(one.sequence_id)
            if open_span is not None:
                open_span.steps += 1
                open_span.nodes += size
                open_span.draft_ms += draft_ms

    def close(self, sequence_ids: Iterable[int]) -> None:
        """They are forgotten; those that are not traced too."""
        for sequence_id in sequence_ids:
            done = self._open.pop(sequence_id, None)
            if done is not None:
                done.span.set_attribute("steps", done.steps)
                done.span.set_attribute("draft_nodes", done.nodes)
                done.span.set_attribute("draft_ms", done.draft_ms)
                done.span.end()
