"""Questions as an engine takes them, pictures encoded beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import msgspec
import numpy as np
from numpy.typing import NDArray

from smart_serve.bench.workload import Question
from smart_serve.frontend.prompt import Prompt
from smart_serve.llm import LLM
from smart_serve.messages import GenerateRequest, SamplingParams
from vision.image import CheckedImage, image_from_pil

Work = tuple[GenerateRequest, list[NDArray[np.float32]]]
"""A request and the features of its pictures."""


def prepared(llm: LLM, questions: Sequence[Question], context: int = 0) -> list[Work]:
    """One request a question, named and seeded by its place; `context` as in `prompt_of`."""
    work = []
    for place, question in enumerate(questions):
        images = [image_from_pil(picture, llm.limits) for picture in question.pictures]
        prompt = prompt_of(llm, question, images, context)
        request = GenerateRequest(
            request_id=str(place),
            token_ids=prompt.token_ids,
            image_spans=prompt.image_spans,
            sampling=SamplingParams(max_tokens=question.max_tokens, seed=place),
        )
        work.append((request, llm.encode(images)))
    return work


def prompt_of(
    llm: LLM, question: Question, images: Sequence[CheckedImage], context: int = 0
) -> Prompt:
    """The question's prompt, brought to `context` tokens by its own words over and over, behind its
    first token; longer ones stay as they are."""
    prompt = llm.prompts.build_raw(question.text, images)
    missing = context - len(prompt.token_ids)
    if missing <= 0:
        return prompt
    first, rest = prompt.token_ids[:1], prompt.token_ids[1:]
    words = [token for token in rest if token != llm.engine.model.image_token_id]
    spans = (
        msgspec.structs.replace(span, start=span.start + missing) for span in prompt.image_spans
    )
    return Prompt((*first, *islice(cycle(words), missing), *rest), tuple(spans))
