"""Throughput of the engine in this process, and of transformers' own `generate` beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlavaForConditionalGeneration

from smart_serve.bench.figures import Sample
from smart_serve.bench.workload import Question
from smart_serve.engine.sequence import Sequence as EngineSequence
from smart_serve.llm import LLM
from smart_serve.messages import GenerateRequest, SamplingParams
from vision.image import decode_image, image_from_pil
from vision.pixels import PixelProcessor

MAX_TOKENS = 128


class EngineBench:
    """Runs a fixed list of questions through one engine, `batch` at a time."""

    def __init__(self, llm: LLM, questions: Sequence[Question]) -> None:
        self._llm = llm
        self._work: list[tuple[GenerateRequest, list[NDArray[np.float32]]]] = []
        for i, question in enumerate(questions):
            image = image_from_pil(question.picture, llm.limits)
            prompt = llm.prompts.build_raw(question.text, [image])
            request = GenerateRequest(
                request_id=str(i), token_ids=prompt.token_ids, image_spans=prompt.image_spans
            )
            # Pictures are encoded beforehand: every policy pays the same for them.
            self._work.append((request, llm.encode([image])))

    def run(self, policy: str, batch: int, temperature: float) -> Sample:
        """Keep `batch` requests running until all are done."""
        engine, pending = self._llm.engine, list(enumerate(self._work))[::-1]
        running: list[EngineSequence] = []
        steps = nodes = sequence_steps = 0
        draft_ms = verify_ms = step_ms = predicted_ms = 0.0
        tokens = 0
        clock = time.perf_counter()
        while pending or running:
            while pending and len(running) < batch:
                index, (request, features) = pending.pop()
                running.append(engine.add(_with(request, policy, temperature, index), features))
            engine.step()
            seen = engine.last_step
            if seen is not None:
                steps, nodes = steps + 1, nodes + seen.forest.num_nodes
                sequence_steps += seen.batch
                draft_ms += sum(seen.layer_ms)
                verify_ms += seen.verify_ms
                step_ms += seen.step_ms
                predicted_ms += engine.controller.predicted_step_ms(seen)
            tokens += sum(s.num_generated for s in running if s.finish_reason is not None)
            running = [s for s in running if s.finish_reason is None]
        return Sample(
            tokens=tokens,
            elapsed_s=time.perf_counter() - clock,
            steps=steps,
            nodes=nodes,
            sequence_steps=sequence_steps,
            draft_ms=draft_ms,
            verify_ms=verify_ms,
            step_ms=step_ms,
            predicted_ms=predicted_ms,
        )


class TransformersBench:
    """The same questions through `generate`: static batches, left-padded, SDPA attention."""

    def __init__(self, llm: LLM, questions: Sequence[Question]) -> None:
        folder = llm.folder
        self._model = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=getattr(torch, llm.config.dtype), attn_implementation="sdpa"
        ).to(llm.config.device)
        self._eos = sorted(llm.engine.model.eos_token_ids)
        self._device = llm.config.device
        processor = PixelProcessor.from_folder(folder)
        self._work = []
        for question in questions:
            image = image_from_pil(question.picture, llm.limits)
            prompt = llm.prompts.build_raw(question.text, [image])
            self._work.append((prompt.token_ids, processor(decode_image(image))["pixel_values"][0]))

    @torch.inference_mode()
    def run(self, batch: int, temperature: float) -> Sample:
        """Greedy, or sampled at `temperature`; only tokens up to the end of each answer count."""
        tokens, clock = 0, time.perf_counter()
        for first in range(0, len(self._work), batch):
            tokens += self._generate(self._work[first : first + batch], temperature)
        return Sample(tokens=tokens, elapsed_s=time.perf_counter() - clock)

    def _generate(
        self, work: Sequence[tuple[tuple[int, ...], torch.Tensor]], temperature: float
    ) -> int:
        width = max(len(ids) for ids, _ in work)
        padded = torch.tensor([[self._eos[0]] * (width - len(ids)) + list(ids) for ids, _ in work])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in work])
        sampled = {"do_sample": True, "temperature": temperature} if temperature else {}
        output = self._model.generate(
            input_ids=padded.to(self._device),
            attention_mask=mask.to(self._device),
            pixel_values=torch.stack([pixels for _, pixels in work]).to(self._device),
            max_new_tokens=MAX_TOKENS,
            pad_token_id=self._eos[0],
            **(sampled or {"do_sample": False}),
        )
        answers = output[:, width:].tolist()
        return sum(_length(answer, self._eos) for answer in answers)


def _with(request: GenerateRequest, policy: str, temperature: float, seed: int) -> GenerateRequest:
    sampling = SamplingParams(
        max_tokens=MAX_TOKENS, temperature=temperature, seed=seed, policy=policy
    )
    return GenerateRequest(
        request_id=request.request_id,
        token_ids=request.token_ids,
        image_spans=request.image_spans,
        sampling=sampling,
    )


def _length(answer: list[int], eos: list[int]) -> int:
    ends = [i for i, token in enumerate(answer) if token in eos]
    return ends[0] + 1 if ends else len(answer)
