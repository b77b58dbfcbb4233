"""In bfloat16 the engine is as near to the exact model as transformers is.

On a GPU this runs through captured graphs and the GPU's kernels.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlavaForConditionalGeneration
from triton_interpreter import DEVICE, GPU_MARKS

from smart_serve import LLM, SamplingParams
from smart_serve.bench.workload import Question, picture_questions
from smart_serve.llm import Completion
from smart_serve.models.folders import resolve_model
from vision.image import decode_image, image_from_pil
from vision.pixels import PixelProcessor

pytestmark = GPU_MARKS
NUM_QUESTIONS = 8
MAX_TOKENS = 48
TOLERANCE = 1.5
"""Times transformers' own error (root of the mean square, in nats): both round at the same places,
but sum in other orders, so errors are alike and not equal."""

Logprobs = NDArray[np.float64]


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return picture_questions(NUM_QUESTIONS, seed=5)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="bfloat16", device=DEVICE, max_running=NUM_QUESTIONS)


def answered(llm: LLM, questions: list[Question], policy: str) -> list[Completion]:
    prompts = [{"prompt": one.text, "images": list(one.pictures)} for one in questions]
    sampling = SamplingParams(max_tokens=MAX_TOKENS, policy=policy, logprobs=0)
    return llm.generate(prompts, sampling)


def of_transformers(
    llm: LLM, questions: list[Question], answers: list[Completion], dtype: torch.dtype
) -> Logprobs:
    """Of the same tokens, one forward for each answer."""
    folder = resolve_model("bundled")
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(DEVICE)
    pixels_of = PixelProcessor.from_folder(folder)
    found = []
    for question, answer in zip(questions, answers, strict=True):
        images = [image_from_pil(picture) for picture in question.pictures]
        prompt = llm.prompts.build_raw(question.text, images).token_ids
        ids = torch.tensor([[*prompt, *answer.token_ids]], device=DEVICE)
        pixels = pixels_of(decode_image(images[0])) if images else {}
        placed = {name: one.to(DEVICE, dtype) for name, one in pixels.items()}
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **placed).logits
        ahead = logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        own = ahead.gather(1, ids[0, len(prompt) :, None]).flatten()
        found.append(own.cpu().numpy())
    return np.concatenate(found)


def rms(errors: Logprobs) -> float:
    return float(np.sqrt(np.mean(errors**2)))


@pytest.mark.parametrize("policy", ["off", "eagle2"])
def test_logprobs_are_as_exact_as_those_of_transformers(
    llm: LLM, questions: list[Question], policy: str
) -> None:
    answers = answered(llm, questions, policy)
    ours = np.asarray([one.logprob for answer in answers for one in answer.logprobs])
    exact = of_transformers(llm, questions, answers, torch.float32)
    theirs = of_transformers(llm, questions, answers, torch.bfloat16)
    assert len(ours) == len(exact) > 100
    assert 0 < rms(ours - exact) <= TOLERANCE * rms(theirs - exact)
    # The control: were each row one place off, the tolerance would tell.
    assert rms(ours[1:] - exact[:-1]) > TOLERANCE * rms(theirs - exact)
