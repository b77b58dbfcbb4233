"""Running the target over a step's rows."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Protocol

import torch

from smart_serve.models.target import Hidden, TargetModel
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.pack import pack_rows
from smart_serve.paging.rows import PackedStep, Rows

RowGroups = Seq[Rows]
ImageRows = Mapping[int, torch.Tensor]


class Forward(Protocol):
    """Packs rows and runs the target over them."""

    @property
    def stairs(self) -> tuple[int, ...]:
        """Numbers of rows to which it pads a step, rising; none: it does not."""
        ...

    def prepare(self) -> None:
        """Whatever takes longer than a step may. Again after the model's captured layers change;
        otherwise harmless."""
        ...

    def run(self, groups: RowGroups, images: ImageRows) -> tuple[PackedStep, Hidden]:
        """`images`: features [n, h] by the packed row where they begin. The result stands until the
        next run."""
        ...


class EagerForward:
    """One operation after another."""

    def __init__(self, model: TargetModel, cache: KvCache) -> None:
        self._model = model
        self._cache = cache
        self._like = torch.empty(0, dtype=model.dtype, device=model.device)

    @property
    def stairs(self) -> tuple[int, ...]:
        return ()

    def prepare(self) -> None:
        """Nothing to do."""

    def run(self, groups: RowGroups, images: ImageRows) -> tuple[PackedStep, Hidden]:
        step = pack_rows(groups, self._cache, self._like)
        embeds = self._model.embed(step.token_ids, images)
        return step, self._model.forward(embeds, step.positions, step.attention)
