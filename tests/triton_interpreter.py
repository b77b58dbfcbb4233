"""Without a GPU the Triton kernels run in Triton's interpreter.

Triton wants to be told before it is imported, which transformers does by itself: import this first.
Three faults of Triton 3.6's interpreter are mended here.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import pytest
import torch


def _mend_interpreter() -> None:
    from triton import language as tl
    from triton.runtime import interpreter

    plain_patch = interpreter._patch_lang_tensor
    plain_dot = interpreter.InterpreterBuilder.create_dot

    def patch_lang_tensor(tensor: type, scope: Any) -> None:
        """Scalars are arrays [1], which NumPy 2.4 no longer turns into an int: a kernel's
        `range(begin, end)` would fail."""
        plain_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        wide = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(wide, tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        """bfloat16 is held as its bits, which would be multiplied as whole numbers."""
        return plain_dot(self, widened(a), widened(b), *rest)

    prepared = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call of a function by a kernel would wrap the whole language once more, and it gets
        slower and slower; one wrapping lasts."""
        if self.fn.__module__.startswith("triton.") and self.fn.__module__ not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(self.fn.__module__)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter.InterpreterBuilder.create_dot = create_dot


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU_MARKS = [pytest.mark.gpu] if torch.cuda.is_available() else []
"""Of tests that run a kernel: interpreted with all others, on a GPU with the GPU's."""

if not torch.cuda.is_available():
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    _mend_interpreter()
