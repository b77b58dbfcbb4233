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
from smart_serve.paging.rows import Ints

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
    ) -> None:
        self._work, self._verified = work, verified
        self._cache = CacheCommit(cache, verified.slots)
        self.accepted: NDArray[np.bool_] = np.zeros(drafted.forest.num_nodes, np.bool_)
        """[M] of the draft nodes."""

    def apply(self) -> list[Emission]:
        """Advance every sequence; accepted nodes' keys and values move to the front."""
        verified, decodes = self._verified, self._work.decodes
        emissions = self._trees() if decodes else []
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

    def _trees(self) -> list[Emission]:
        """The accepted path of every tree, and the bonus token behind it."""
        decodes, drawn = self._work.decodes, self._verified.drawn
        first_rows = self._verified.first_rows[: len(decodes) + 1]
        roots, counts = first_rows[:-1], drawn.lengths + 1
        ends = np.cumsum(counts)
        rows = drawn.committed_rows(roots)
        places = np.arange(len(rows)) + np.repeat(roots - ends + counts, counts)
        is_finite = np.logical_and.reduceat(drawn.is_finite[: first_rows[-1]], roots)
        emissions: list[Emission] = []
        is_good = np.ones(len(decodes), np.bool_)
        tokens, begin = drawn.token_ids[rows].tolist(), 0
        for i, (sequence, end) in enumerate(zip(decodes, ends.tolist(), strict=True)):
            if not is_finite[i] or sequence.id in drawn.faulty:
                is_good[i] = False
                why = _NOT_DRAWN if is_finite[i] else _NOT_FINITE
                emissions.append(failed(sequence, why))
            else:
                said = drawn.logprobs.at(sequence, rows[begin:end])
                emissions.append(self._advance(sequence, tokens[begin:end], end - begin, said))
            begin = end
        if not is_good.all():
            kept = np.repeat(is_good, counts)
            rows, places = rows[kept], places[kept]
        self._note(rows, places, roots)
        return emissions

    def _note(self, rows: Ints, places: Ints, roots: Ints) -> None:
        """Packed `rows` of trees that begin at `roots` are accepted, for good in `places`."""
        self._cache.add_rows(rows, places)
        # Roots have rows, and are no draft nodes.
        trees = np.searchsorted(roots, rows, side="right")
        self.accepted[(rows - trees)[rows != roots[trees - 1]]] = True

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
            said = drawn.logprobs.at(sequence, np.array([drawn_row]))
        if not is_finite:
            return failed(sequence, _NOT_FINITE)
        if sequence.id in drawn.faulty:
            return failed(sequence, _NOT_DRAWN)
        committed = np.arange(rows.start, rows.stop)
        self._cache.add_rows(committed, committed)
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
        kept, reason = cut_at_end(sequence, tokens)
        sequence.tokens.extend(kept)
        sequence.num_computed += num_rows
        sequence.finish_reason = reason
        num_accepted = min(max(len(tokens) - 1, 0), len(kept))
        return Emission(sequence, tuple(kept), num_accepted, logprobs[: len(kept)])
