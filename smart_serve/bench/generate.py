"""transformers' own `generate` on the same questions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from smart_serve.bench.figures import Load, Sample
from smart_serve.bench.prepared import prompt_of
from smart_serve.bench.workload import Question
from smart_serve.llm import LLM
from vision.image import decode_image, image_from_pil
from vision.pixels import PixelProcessor


@dataclass(frozen=True, slots=True)
class _Work:
    token_ids: tuple[int, ...]
    pictures: tuple[Mapping[str, torch.Tensor], ...]
    """What the model takes of each picture, by name, [pictures or patches, …]."""
    max_tokens: int


class GenerateBench:
    """Static batches, left-padded, SDPA attention; it encodes the pictures, too.

    On a GPU with a static cache, for which transformers compiles the decode step.
    """

    def __init__(
        self,
        llm: LLM,
        questions: Sequence[Question],
        context: int = 0,
        has_static_cache: bool | None = None,
    ) -> None:
        """`context`: tokens of a prompt, at least; `has_static_cache`: None: on a GPU."""
        model, device = llm.engine.model, llm.engine.model.device
        self._model = AutoModelForImageTextToText.from_pretrained(
            llm.folder, dtype=model.dtype, attn_implementation="sdpa"
        ).to(device)
        self._eos, self._device = sorted(model.eos_token_ids), device
        processor = PixelProcessor.from_folder(llm.folder)
        self._work = []
        for question in questions:
            images = [image_from_pil(picture, llm.limits) for picture in question.pictures]
            prompt = prompt_of(llm, question, images, context)
            pictures = tuple(processor(decode_image(image)) for image in images)
            self._work.append(_Work(prompt.token_ids, pictures, question.max_tokens))
        self._cache: dict[str, Any] = {}
        if device.type == "cuda" if has_static_cache is None else has_static_cache:
            # One size for all batches: for another one it would be compiled again.
            longest = max(len(item.token_ids) for item in self._work)
            longest += max(item.max_tokens for item in self._work)
            self._cache = {"cache_implementation": "static", "max_cache_len": longest}

    def run(self, load: Load, first: int) -> Sample:
        """Greedy, or sampled; only tokens up to the end of each answer count."""
        places = [(first + i) % len(self._work) for i in range(load.requests)]
        tokens, clock = 0, time.perf_counter()
        for begin in range(0, len(places), load.batch):
            answers = self.answers(places[begin : begin + load.batch], load.temperature)
            tokens += sum(map(len, answers))
        return Sample(tokens=tokens, elapsed_s=time.perf_counter() - clock)

    @torch.inference_mode()
    def answers(self, places: Sequence[int], temperature: float) -> list[list[int]]:
        """Token ids, each up to its own end, of the questions with these numbers as one batch."""
        work = [self._work[place] for place in places]
        width = max(len(item.token_ids) for item in work)
        pad = self._eos[0] if self._eos else 0
        padding = [width - len(item.token_ids) for item in work]
        ids = [
            [pad] * empty + list(item.token_ids) for empty, item in zip(padding, work, strict=True)
        ]
        mask = [[0] * empty + [1] * (width - empty) for empty in padding]
        pictures = [picture for item in work for picture in item.pictures]
        arrays = {
            name: torch.cat([picture[name] for picture in pictures]).to(self._device)
            for name in (pictures[0] if pictures else ())
        }
        sampled = {"do_sample": True, "temperature": temperature} if temperature else {}
        output = self._model.generate(
            input_ids=torch.tensor(ids).to(self._device),
            attention_mask=torch.tensor(mask).to(self._device),
            max_new_tokens=max(item.max_tokens for item in work),
            pad_token_id=pad,
            **arrays,
            **self._cache,
            **(sampled or {"do_sample": False}),
        )
        return [
            _up_to_its_end(answer[: item.max_tokens], self._eos)
            for answer, item in zip(output[:, width:].tolist(), work, strict=True)
        ]


def _up_to_its_end(answer: list[int], eos: list[int]) -> list[int]:
    ends = [i for i, token in enumerate(answer) if token in eos]
    return answer[: ends[0] + 1] if ends else answer
