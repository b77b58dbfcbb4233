"""The target's steps in CUDA graphs."""

from __future__ import annotations

from smart_serve.engine.forward import EagerForward, ImageRows, RowGroups
from smart_serve.models.target import Hidden, TargetModel
from smart_serve.paging.buckets import Buckets, Capture
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.ragged import ragged_rows
from smart_serve.paging.rows import PackedStep, joined
from smart_serve.progress import show_progress


class GraphedForward:
    """Steps that fit a bucket run as its graph, all others eagerly."""

    def __init__(
        self,
        model: TargetModel,
        cache: KvCache,
        max_sequences: int,
        *,
        capture: Capture[Hidden] | None = None,
        progress: bool = False,
    ) -> None:
        self._model = model
        self._block_tokens = cache.block_tokens
        self._progress = progress
        self._eager = EagerForward(model, cache)
        self._buckets: Buckets[Hidden] = Buckets(
            cache,
            axes=3 if model.has_mrope else 1,
            max_sequences=max_sequences,
            max_slots=model.max_context,
            capture=capture,
        )
        self._captured_layers: tuple[int, ...] | None = None

    @property
    def stairs(self) -> tuple[int, ...]:
        return self._buckets.rows

    def prepare(self) -> None:
        if self._captured_layers != self._model.captured_layers:
            self._buckets.capture(self._forward, self._show if self._progress else None)
            self._captured_layers = self._model.captured_layers

    def run(self, groups: RowGroups, images: ImageRows) -> tuple[PackedStep, Hidden]:
        if images:
            return self._eager.run(groups, images)
        step = ragged_rows(joined(groups), self._block_tokens)
        bucket = self._buckets.find(step.size)
        if bucket is None:
            return self._eager.run(groups, images)
        packed, hidden, rows = bucket.fill(step), bucket.replay(), step.size.rows
        return packed, Hidden(hidden.last[:rows], hidden.features[:rows])

    def _forward(self, step: PackedStep) -> Hidden:
        return self._model.forward(
            self._model.embed(step.token_ids), step.positions, step.attention
        )

    @staticmethod
    def _show(done: int, total: int) -> None:
        show_progress("capturing the target's graphs", done, total)
