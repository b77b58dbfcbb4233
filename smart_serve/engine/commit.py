"""What a verified step changes: the sequences go on, and accepted rows stay in the cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smart_serve.engine.cache_commit import CacheCommit
from smart_serve.engine.drafted import Drafted
from smart_serve.engine.emission import Emission, cut_at_end, failed
from smart_serve.engine.scheduler import PrefillChunk, StepWork
from smart_serve.engine.sequence import Sequence
from smart_serve.engine.verify import Verified
from smart_serve.messages import TokenLogprob
from smart_serve.paging.kv_cache import KvCache

_NOT_FINITE = "the model's output is not finite"
_NOT_DRAWN = "no token could be drawn with the request's sampling parameters"


class StepCommit:
    """One step's, of decoding sequences and prefill chunks alike."""

    def __init__(
        self,
        work: StepWork,
        drafted: Drafted,
        verified: Verified,
        cache: KvCache,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._work, self._forest, self._verified = work, drafted.forest, verified
        self._eos_token_ids = eos_token_ids
        self._cache = CacheCommit(cache, verified.slots)
        self.accepted: NDArray[np.bool_] = np.zeros(drafted.forest.num_nodes, np.bool_)
        """[M] of the draft nodes."""

    def apply(self) -> list[Emission]:
        """Advance every sequence; accepted nodes' keys and values move to the front."""
        verified, decodes = self._verified, self._work.decodes
        emissions = [self._tree(i, sequence) for i, sequence in enumerate(decodes)]
        drawn_row = num_tree_rows = int(verified.first_rows[len(decodes)])
        for i, chunk in enumerate(self._work.prefills, start=len(decodes)):
            rows = slice(int(verified.first_rows[i]), int(verified.first_rows[i + 1]))
            own = slice(rows.start - num_tree_rows, rows.stop - num_tree_rows)
            is_finite = bool(verified.prompt_is_finite[own].all())
            emission = self._chunk(chunk, rows, drawn_row, is_finite)
            drawn_row += chunk.is_last
            if emission is not None:
                emissions.append(emission)
        self._cache.apply(verified.drawn.walk, verified.first_rows, verified.hidden.features)
        return emissions

    def _tree(self, index: int, sequence: Sequence) -> Emission:
        """The accepted path of one tree, and the bonus token behind it."""
        first, last = (int(row) for row in self._verified.first_rows[index : index + 2])
        drawn = self._verified.drawn
        if not drawn.is_finite[first:last].all():
            return failed(sequence, _NOT_FINITE)
        if sequence.id in drawn.faulty:
            return failed(sequence, _NOT_DRAWN)
        path = drawn.path(index)
        nodes = int(self._forest.offsets[index]) + path[1:] - 1
        self.accepted[nodes] = True
        bonus = int(drawn.token_ids[first + path[-1]])
        tokens = [*self._forest.token_ids[nodes].tolist(), bonus]
        self._cache.add_rows(first, path)
        said = drawn.logprobs.at(sequence, (first + path).tolist())
        return self._advance(sequence, tokens, len(path), said)

    def _chunk(
        self, chunk: PrefillChunk, rows: slice, drawn_row: int, is_finite: bool
    ) -> Emission | None:
        """The chunk at packed `rows`; the prompt's last one brings the first token, which was drawn
        at `drawn_row`. None: nothing to tell yet."""
        sequence, drawn = chunk.sequence, self._verified.drawn
        tokens: list[int] = []
        said: tuple[TokenLogprob, ...] = ()
        if chunk.is_last:
            is_finite = is_finite and bool(drawn.is_finite[drawn_row])
            tokens = [int(drawn.token_ids[drawn_row])]
            said = drawn.logprobs.at(sequence, [drawn_row])
        if not is_finite:
            return failed(sequence, _NOT_FINITE)
        if sequence.id in drawn.faulty:
            return failed(sequence, _NOT_DRAWN)
        self._cache.add_rows(rows.start, np.arange(rows.stop - rows.start))
        emission = self._advance(sequence, tokens, chunk.length, said)
        return emission if tokens else None

    def _advance(
        self,
        sequence: Sequence,
        tokens: list[int],
        num_rows: int,
        logprobs: tuple[TokenLogprob, ...],
    ) -> Emission:
        """`num_rows` more are committed; append the tokens that follow them."""
        kept, reason = cut_at_end(sequence, tokens, self._eos_token_ids)
        sequence.tokens.extend(kept)
        sequence.num_computed += num_rows
        sequence.finish_reason = reason
        num_accepted = min(max(len(tokens) - 1, 0), len(kept))
        return Emission(sequence, tuple(kept), num_accepted, logprobs[: len(kept)])
