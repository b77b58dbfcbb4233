"""smart-serve: tree speculative decoding for multimodal LLMs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smart_serve.messages import SamplingParams

if TYPE_CHECKING:
    from smart_serve.llm import LLM, Completion

__all__ = ["LLM", "Completion", "SamplingParams"]


def __getattr__(name: str) -> Any:
    """`LLM` loads torch and transformers; the edge and the controller must start without them."""
    if name in ("LLM", "Completion"):
        from smart_serve import llm

        return getattr(llm, name)
    raise AttributeError(f"module 'smart_serve' has no attribute '{name}'")
