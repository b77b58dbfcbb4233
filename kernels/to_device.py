"""From host arrays to the device, without waiting for it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


def to_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A tensor on `device`; on the CPU it shares the array's memory."""
    tensor = torch.from_numpy(array)
    # Only from pinned memory does a copy go on by itself; torch keeps it until then.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
