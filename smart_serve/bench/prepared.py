"""Questions as an engine takes them, pictures encoded beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from smart_serve.bench.workload import Question
from smart_serve.llm import LLM
from smart_serve.messages import GenerateRequest, SamplingParams
from vision.image import image_from_pil

Work = tuple[GenerateRequest, list[NDArray[np.float32]]]
"""A request and the features of its pictures."""


def prepared(llm: LLM, questions: Sequence[Question]) -> list[Work]:
    """One request a question, named and seeded by its place."""
    work = []
    for place, question in enumerate(questions):
        images = [image_from_pil(picture, llm.limits) for picture in question.pictures]
        prompt = llm.prompts.build_raw(question.text, images)
        request = GenerateRequest(
            request_id=str(place),
            token_ids=prompt.token_ids,
            image_spans=prompt.image_spans,
            sampling=SamplingParams(max_tokens=question.max_tokens, seed=place),
        )
        work.append((request, llm.encode(images)))
    return work
