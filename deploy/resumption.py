"""One request over the replicas that serve it: where it stands, and how another goes on with it."""

from __future__ import annotations

import msgspec

from smart_serve.messages import GenerateRequest, RequestStats, TokenChunk


class Resumption:
    """What the client has been given so far.

    A token depends on (seed, prompt, position) alone, so a second replica that is given the tokens
    emitted so far as part of its prompt goes on where the first one stopped.
    """

    def __init__(self, request: GenerateRequest) -> None:
        assert request.sampling.seed is not None, "each replica would draw another one"
        self._request = request
        self._emitted: list[int] = []
        self._since: list[TokenChunk] = []
        self._before = RequestStats()

    def request(self) -> GenerateRequest:
        """What the next replica is asked for."""
        request, sampling = self._request, self._request.sampling
        if not self._emitted:
            return request
        self._fold()
        left = sampling.max_tokens - len(self._emitted)
        return msgspec.structs.replace(
            request,
            token_ids=(*request.token_ids, *self._emitted),
            num_resumed=len(self._emitted),
            sampling=msgspec.structs.replace(sampling, max_tokens=left),
        )

    def take(self, chunk: TokenChunk) -> TokenChunk:
        """Notes a chunk; the last one's stats become those of the whole request."""
        self._emitted.extend(chunk.token_ids)
        self._since.append(chunk)
        if chunk.stats is None or self._before.completion_tokens == 0:
            return chunk
        stats = msgspec.structs.replace(
            self._before + chunk.stats, prompt_tokens=len(self._request.token_ids)
        )
        return msgspec.structs.replace(chunk, stats=stats)

    def _fold(self) -> None:
        """Counts the steps of a replica that died before it could tell its stats."""
        self._before += RequestStats(
            completion_tokens=sum(len(chunk.token_ids) for chunk in self._since),
            target_steps=sum(chunk.num_steps for chunk in self._since),
            accepted_tokens=sum(chunk.num_accepted for chunk in self._since),
        )
        self._since = []
