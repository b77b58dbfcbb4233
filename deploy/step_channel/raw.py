"""The raw part of a frame: a message's arrays one after the other, little-endian in C order.

What they are and how large follows from the message; the order is that in which it names them.
All items have eight bytes but those of a tensor, which stands last: so every array is aligned.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from deploy.step_channel.errors import ProtocolError

assert sys.byteorder == "little", "frames are little-endian and are not swapped"

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def ints(values: ArrayLike) -> memoryview:
    return np.ascontiguousarray(values, np.int64).data


def floats(values: ArrayLike) -> memoryview:
    return np.ascontiguousarray(values, np.float64).data


def dtype_name(tensor: torch.Tensor) -> str:
    """Raises `ValueError` for a tensor that cannot travel."""
    name = _NAMES.get(tensor.dtype)
    if name is None:
        raise ValueError(f"tensors of {tensor.dtype} do not travel on the step channel")
    return name


def tensor_bytes(rows: Sequence[torch.Tensor]) -> memoryview:
    """Of matrices of one width, one below the other, brought to the CPU in one copy."""
    host = _stacked(rows).cpu().contiguous()
    return host.view(torch.uint8).numpy(force=True).data


def _stacked(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """As `torch.cat`, without a copy where they are parts of one matrix in its order, as a step's
    are."""
    first = rows[0]
    if len(rows) == 1:
        return first
    start = end = first.data_ptr()
    for one in rows:
        if one.data_ptr() != end or one.dtype != first.dtype or not one.is_contiguous():
            return torch.cat(list(rows))
        end += one.nbytes
    storage, width = first.untyped_storage(), first.size(1)
    # Of neighbours by chance each is in memory of its own.
    if end > storage.data_ptr() + storage.nbytes():
        return torch.cat(list(rows))
    return first.as_strided(((end - start) // (width * first.itemsize), width), (width, 1))


class RawReader:
    """Takes the arrays from a frame; they are views of it."""

    def __init__(self, raw: NDArray[np.uint8]) -> None:
        self._raw = raw
        self._at = 0

    def ints(self, *shape: int) -> NDArray[np.int64]:
        """Raises `ProtocolError`, as all of these, if there is less."""
        return self._take(8, shape).view(np.int64).reshape(shape)

    def floats(self, *shape: int) -> NDArray[np.float64]:
        return self._take(8, shape).view(np.float64).reshape(shape)

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """Of the dtype `name`, as `dtype_name` tells it."""
        dtype = _DTYPES.get(name)
        if dtype is None:
            raise ProtocolError(f"tensor of unknown type '{name[:32]}'")
        part = self._take(dtype.itemsize, shape)
        return torch.frombuffer(part, dtype=dtype).view(shape) if len(part) else torch.empty(shape)

    def end(self) -> None:
        """Raises `ProtocolError` if anything is left."""
        if self._at != len(self._raw):
            raise ProtocolError("more bytes than the arrays have")

    def _take(self, item_bytes: int, shape: tuple[int, ...]) -> NDArray[Any]:
        begin = self._at
        self._at += math.prod(shape) * item_bytes
        if self._at > len(self._raw):
            raise ProtocolError("arrays with fewer bytes than their shapes")
        return self._raw[begin : self._at]
