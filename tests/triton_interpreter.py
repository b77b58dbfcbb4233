"""Without a GPU the Triton kernels run in Triton's interpreter.

Triton wants to be told before it is imported, which transformers does by itself: import this first.
Two faults of Triton 3.6's interpreter are mended here.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
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

    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter.InterpreterBuilder.create_dot = create_dot


if not torch.cuda.is_available():
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    _mend_interpreter()
