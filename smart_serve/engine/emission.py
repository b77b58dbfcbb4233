"""What a step gives to its requests: tokens, the end, and the tally of what they cost."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from smart_serve.engine.scheduler import StepWork
from smart_serve.engine.sequence import Sequence
from smart_serve.engine.trace import step_trace
from smart_serve.messages import FinishReason, TokenChunk, TokenLogprob
from smart_serve.speculation.step_cost import StepPrice
from smart_serve.speculation.step_observation import StepObservation

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Emission:
    """New tokens of one sequence."""

    sequence: Sequence
    token_ids: tuple[int, ...]
    num_accepted: int
    logprobs: tuple[TokenLogprob, ...] = ()
    chunk: TokenChunk | None = None
    """See `finish`."""

    def finish(self) -> None:
        """Once the step has been tallied: fill in the message for the request, with its stats if
        this may be the last one."""
        sequence = self.sequence
        # Stop strings are watched for elsewhere: any chunk may be the one that ends the answer.
        may_end = sequence.finish_reason is not None or bool(sequence.request.sampling.stop)
        self.chunk = TokenChunk(
            token_ids=self.token_ids,
            num_accepted=self.num_accepted,
            logprobs=self.logprobs,
            finish_reason=sequence.finish_reason,
            stats=sequence.stats() if may_end else None,
            error=sequence.error,
            trace=sequence.trace,
        )


def failed(sequence: Sequence, why: str) -> Emission:
    """The end of a sequence by its own fault, or for want of memory."""
    _LOG.error("request %s: %s", sequence.request.request_id, why)
    sequence.finish_reason, sequence.error = "error", why
    return Emission(sequence, (), 0)


def cut_at_end(sequence: Sequence, tokens: list[int]) -> tuple[list[int], FinishReason | None]:
    """The tokens up to the first that ends the answer (it is kept), and why it ends."""
    left = sequence.request.sampling.max_tokens - sequence.num_generated
    kept = tokens[:left]
    if not sequence.ends.isdisjoint(kept):
        end = next(i for i, token in enumerate(kept) if token in sequence.ends)
        return kept[: end + 1], "stop"
    return kept, "length" if len(tokens) >= left else None


def tally_step(
    work: StepWork, left_out: Seq[Sequence], seen: StepObservation, price: StepPrice | None
) -> None:
    """Add the step to the tallies of the requests that took part, and its time to those that were
    `left_out`; shared time counts for each."""
    for chunk in work.prefills:
        chunk.sequence.trace = None
        chunk.sequence.tally.prefill_ms += seen.step_ms
        if chunk.is_last:
            chunk.sequence.tally.target_steps += 1
            chunk.sequence.tally.tree_sizes.append(0)
    if price is None:
        return
    # A step that also prefills is slower than the tables of a decode step know; it is counted at
    # what it took, on both sides.
    predicted_ms = price.predicted.total_ms if not work.prefills else seen.step_ms
    for sequence in left_out:
        sequence.tally.decode_ms += seen.step_ms
        sequence.tally.predicted_ms += predicted_ms
    # Of trees that end where the next one begins, by what was accepted up to there.
    so_far = np.concatenate(([0], np.cumsum(seen.accepted)))[seen.forest.offsets]
    each = zip(work.decodes, seen.forest.sizes.tolist(), np.diff(so_far).tolist(), strict=True)
    for i, (sequence, size, accepted) in enumerate(each):
        tally = sequence.tally
        tally.target_steps += 1
        tally.drafted += size
        tally.accepted += accepted
        tally.tree_sizes.append(size)
        tally.decode_ms += seen.step_ms
        tally.draft_ms += seen.propose_ms
        tally.verify_ms += seen.verify_ms
        tally.plain_ms += price.plain_ms * (accepted + 1)
        tally.predicted_ms += predicted_ms
        if sequence.request.trace:
            sequence.trace = step_trace(i, seen, seen.propose_ms, price.plain_ms, predicted_ms)
