"""The whole server in one process, for notebooks, tests and benchmarks: no Ray, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from smart_serve.config import DtypeName, EngineConfig, SpeculationConfig
from smart_serve.drafters.load import load_drafter
from smart_serve.engine import sequence as engine_sequence
from smart_serve.engine.build import build_engine
from smart_serve.engine.emission import Emission
from smart_serve.environment import check_environment
from smart_serve.errors import ClientError, ServerError
from smart_serve.frontend.chat import ChatMessage
from smart_serve.frontend.detokenizer import Detokenizer
from smart_serve.frontend.prompt import Prompt, PromptBuilder, check_length
from smart_serve.limits import Limits
from smart_serve.messages import (
    FinishReason,
    GenerateRequest,
    RequestStats,
    SamplingParams,
    TokenLogprob,
)
from smart_serve.models.folders import resolve_model
from vision.encoder import VisionEncoder
from vision.image import CheckedImage, check_image, image_from_pil

PromptInput = str | Mapping[str, Any]
"""A question; or a mapping with one of "prompt" (a question), "messages" and "prompt_token_ids",
the first two also with "images".

Messages are {"role": ..., "content": ...}; content is text, or a list of parts: {"type": "text",
"text": ...}, and {"type": "image"} where the next of the images stands.
"""
_PROMPT_KINDS = ("prompt", "messages", "prompt_token_ids")


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One finished answer."""

    text: str
    token_ids: tuple[int, ...]
    """Emitted tokens, the one that ended the answer included."""
    finish_reason: FinishReason
    stats: RequestStats
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token, if they were asked for."""


class LLM:
    """A target, its drafter and its vision encoder.

    `model` is "bundled", a folder or a hub name. `drafter` is "bundled", the folder or hub name of
    an EAGLE, EAGLE-3 or MSD checkpoint, "draft_model:FOLDER" for a small language model, or "ngram"
    for prompt lookup; None decodes plainly. `engine_options` are fields of `EngineConfig`
    (kv_tokens, max_running, …).
    """

    def __init__(
        self,
        model: str | Path = "bundled",
        drafter: str | Path | None = "bundled",
        policy: str = "smart",
        dtype: DtypeName = "auto",
        device: str = "cpu",
        *,
        speculation: SpeculationConfig | None = None,
        limits: Limits | None = None,
        progress: bool = False,
        **engine_options: Any,
    ) -> None:
        check_environment()
        folder = resolve_model(model)
        self.limits = limits or Limits()
        speculation = msgspec.structs.replace(speculation or SpeculationConfig(), policy=policy)
        self.config = EngineConfig(
            dtype=dtype, device=device, speculation=speculation, **engine_options
        )
        self.prompts = PromptBuilder.from_folder(folder, self.limits)
        self.folder = folder
        self._vision: VisionEncoder | None = None
        loaded = load_drafter(str(drafter), folder, self.config) if drafter is not None else None
        self.engine = build_engine(folder, self.config, loaded, progress=progress)

    def generate(
        self,
        prompts: Sequence[PromptInput],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Answers, in order. All requests run in one batch, as far as it has room.

        Raises `ClientError` for a request that can never run, before any has started.
        """
        params = _per_prompt(sampling or SamplingParams(), len(prompts))
        requests = [
            self._request(i, prompt, chosen)
            for i, (prompt, chosen) in enumerate(zip(prompts, params, strict=True))
        ]
        answers = [_Answer(request, self.prompts) for request, _ in requests]
        pending = list(zip(answers, [images for _, images in requests], strict=True))[::-1]
        try:
            while pending or self.engine.scheduler.has_work:
                while pending and len(self.engine.scheduler.waiting) < self.config.max_waiting:
                    answer, images = pending.pop()
                    features = self.encode(images)
                    answer.sequence = self.engine.add(answer.request, features)
                self._step(answers)
        finally:
            for answer in answers:
                if answer.sequence is not None:
                    self.engine.abort(answer.sequence)
        return [answer.completion() for answer in answers]

    def encode(self, images: Sequence[CheckedImage]) -> list[NDArray[np.float32]]:
        """Features of pictures, each [image tokens, hidden]; cached by content."""
        if not images:
            return []
        if self._vision is None:
            # Loaded with the first picture: text alone needs no vision tower.
            dtype = getattr(torch, self.config.dtype_name)
            self._vision = VisionEncoder(self.folder, dtype, self.config.device)
        return self._vision.encode(images)

    def _step(self, answers: list[_Answer]) -> None:
        by_id = {a.sequence.id: a for a in answers if a.sequence is not None}
        for emission in self.engine.step():
            answer = by_id[emission.sequence.id]
            answer.push(emission)
            if answer.detokenizer.finished_by_stop:
                self.engine.abort(emission.sequence)

    def _request(
        self, index: int, prompt: PromptInput, sampling: SamplingParams
    ) -> tuple[GenerateRequest, list[CheckedImage]]:
        fields = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
        images = [self._image(image) for image in fields.pop("images", None) or ()]
        built = self._built(fields, images)
        check_length(built, sampling.max_tokens, self.engine.max_context)
        request = GenerateRequest(
            request_id=str(index),
            token_ids=built.token_ids,
            image_spans=built.image_spans,
            sampling=sampling,
        )
        return request, images

    def _built(self, fields: Mapping[str, Any], images: Sequence[CheckedImage]) -> Prompt:
        match list(fields.items()):
            case [("prompt", str(text))]:
                return self.prompts.build_raw(text, images)
            case [("messages", messages)]:
                return self.prompts.build(_chat(messages), images)
            case [("prompt_token_ids", ids)] if not images:
                return Prompt(token_ids=tuple(int(token) for token in ids), image_spans=())
        message = f"a prompt has one of {', '.join(_PROMPT_KINDS)}; the first two may have images"
        raise ClientError(message, param="prompts")

    def _image(self, image: Image.Image | bytes | str | Path) -> CheckedImage:
        if isinstance(image, Image.Image):
            return image_from_pil(image, self.limits)
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        return check_image(data, self.limits)


class _Answer:
    """One request of a `generate` call on its way."""

    def __init__(self, request: GenerateRequest, prompts: PromptBuilder) -> None:
        self.request = request
        self.sequence: engine_sequence.Sequence | None = None
        self.detokenizer = Detokenizer(prompts.tokenizer, request.sampling.stop)
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []

    def push(self, emission: Emission) -> None:
        self.logprobs.extend(emission.logprobs)
        self.texts.append(self.detokenizer.push(emission.token_ids))
        if emission.sequence.finish_reason is not None:
            self.texts.append(self.detokenizer.flush())

    def completion(self) -> Completion:
        sequence = self.sequence
        assert sequence is not None
        reason = "stop" if self.detokenizer.finished_by_stop else sequence.finish_reason
        assert reason is not None
        if reason == "error":
            raise ServerError(sequence.error or "the engine could not finish this answer")
        return Completion(
            text="".join(self.texts),
            token_ids=tuple(sequence.tokens[sequence.num_prompt :]),
            finish_reason=reason,
            stats=sequence.stats(),
            logprobs=tuple(self.logprobs),
        )


def _chat(messages: object) -> list[ChatMessage]:
    try:
        return msgspec.convert(messages, list[ChatMessage])
    except msgspec.ValidationError as error:
        raise ClientError(f"the messages are not well formed: {error}", param="messages") from error


def _per_prompt(
    sampling: SamplingParams | Sequence[SamplingParams], count: int
) -> list[SamplingParams]:
    if isinstance(sampling, SamplingParams):
        return [sampling] * count
    if len(sampling) != count:
        raise ClientError(f"{len(sampling)} sampling parameters for {count} prompts")
    return list(sampling)
