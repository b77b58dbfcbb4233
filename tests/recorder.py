"""Captures without a GPU: forwards that run again over the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from smart_serve.models.target import Hidden
from smart_serve.paging.buckets import Replay
from smart_serve.paging.rows import PackedStep

ResultT = TypeVar("ResultT", torch.Tensor, Hidden)


class Recorder:
    """Captures by running again; counts."""

    def __init__(self) -> None:
        self.captures = 0
        self.replayed: list[int] = []
        """Numbers of rows."""

    def __call__(
        self, forward: Callable[[PackedStep], ResultT], step: PackedStep
    ) -> tuple[ResultT, Replay]:
        self.captures += 1
        result = forward(step)
        if isinstance(result, Hidden):
            standing = Hidden(result.last.clone(), result.features.clone())
        else:
            standing = result.clone()

        def replay() -> None:
            for old, new in zip(_tensors(standing), _tensors(forward(step)), strict=True):
                old.copy_(new)
            self.replayed.append(len(_tensors(standing)[0]))

        return standing, replay


def _tensors(result: torch.Tensor | Hidden) -> tuple[torch.Tensor, ...]:
    return (result.last, result.features) if isinstance(result, Hidden) else (result,)
