"""Arrays on the wire: a dtype, a shape and the raw bytes, little-endian in C order."""

from __future__ import annotations

import math
import sys
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from deploy.step_channel.errors import ProtocolError

assert sys.byteorder == "little", "frames are little-endian and are not swapped"

# bfloat16 has no numpy type: it travels as its 16-bit pattern.
_NUMPY_DTYPES: dict[str, type[np.generic]] = {
    "int64": np.int64,
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
}
# Not `dtype.name`, which is put together anew each time: a step asks twenty times.
_NUMPY_NAMES = {np.dtype(kind): name for name, kind in _NUMPY_DTYPES.items()}
_TENSOR_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


class WireArray(msgspec.Struct, frozen=True, array_like=True):
    """One array. Decoding leaves `data` as a view into the received frame: nothing is copied."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @staticmethod
    def from_numpy(array: NDArray[Any], name: str | None = None) -> WireArray:
        """Any array whose dtype the wire knows; `name` overrides the dtype's own name."""
        dtype = name or _NUMPY_NAMES.get(array.dtype)
        if dtype is None or dtype not in _NUMPY_DTYPES:
            raise ValueError(f"arrays of {array.dtype} do not travel on the step channel")
        contiguous = np.ascontiguousarray(array)
        data = contiguous.reshape(-1).view(np.uint8).data
        return WireArray(dtype, array.shape, data)

    @staticmethod
    def from_tensor(tensor: torch.Tensor) -> WireArray:
        """A floating-point tensor of any device; it is brought to the CPU in one copy."""
        name = _TENSOR_NAMES.get(tensor.dtype)
        if name is None:
            raise ValueError(f"tensors of {tensor.dtype} do not travel on the step channel")
        host = tensor.detach().cpu().contiguous()
        if name == "bfloat16":
            host = host.view(torch.uint16)
        return WireArray.from_numpy(host.numpy(), name)

    def to_numpy(self) -> NDArray[Any]:
        """An aligned array of its own. Raises `ProtocolError` when shape and bytes disagree."""
        dtype = _NUMPY_DTYPES.get(self.dtype)
        if dtype is None:
            raise ProtocolError(f"array of unknown type '{self.dtype[:32]}'")
        if any(side < 0 for side in self.shape) or len(self.shape) > 4:
            raise ProtocolError("array of an impossible shape")
        if math.prod(self.shape) * np.dtype(dtype).itemsize != self.data.nbytes:
            raise ProtocolError("array whose bytes do not match its shape")
        # A copy, because the view stands at any byte of the frame and would be unaligned.
        flat = np.frombuffer(self.data, dtype).copy()
        return flat if len(self.shape) == 1 else flat.reshape(self.shape)

    def to_tensor(self) -> torch.Tensor:
        """A CPU tensor. Raises `ProtocolError` as `to_numpy` does, or if it holds no floats."""
        if self.dtype not in _TENSOR_NAMES.values():
            raise ProtocolError(f"tensor of unknown type '{self.dtype[:32]}'")
        tensor = torch.from_numpy(self.to_numpy())
        return tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor
