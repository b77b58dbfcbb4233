"""Figures of a running server over HTTP: streaming clients, one thread each."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from smart_serve.bench.contestant import Contestant
from smart_serve.bench.figures import Load, Sample, TimeSplit
from smart_serve.bench.workload import Question
from smart_serve.client import chat_body, delta_text, get_json, stream_chat
from smart_serve.errors import ServerError


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer as a client sees it."""

    usage: dict[str, Any]
    first_token_ms: float
    rest_ms: float
    """From the first text to the last."""


class HttpBench:
    """Sends the questions to one server, `load.batch` clients at a time."""

    def __init__(self, url: str, questions: Sequence[Question]) -> None:
        self._url = url.rstrip("/")
        model = get_json(f"{self._url}/v1/models")["data"][0]["id"]
        self._bodies = [
            chat_body(
                model,
                question.text,
                [_png_url(picture) for picture in question.pictures],
                max_tokens=question.max_tokens,
            )
            for question in questions
        ]

    def run(self, policy: str, load: Load, first: int) -> Sample:
        """`load.requests` questions; tokens as the server counts them.

        The same ones in every round, whatever `first` is: a server that reuses prefixes has seen
        them all in the warm-up, so that none of the policies pays for the others' prompts.
        """
        places = [i % len(self._bodies) for i in range(load.requests)]
        contestant = Contestant.of(policy)
        speculation = {"policy": contestant.policy, "verification": contestant.verification}
        fields = {"temperature": load.temperature, "speculation": speculation}
        clock = time.perf_counter()
        with ThreadPoolExecutor(load.batch) as clients:
            jobs = [
                clients.submit(self._ask, {**self._bodies[place], **fields, "seed": place})
                for place in places
            ]
            answers = [job.result() for job in jobs]
        return _sample(answers, time.perf_counter() - clock)

    def _ask(self, body: dict[str, Any]) -> _Answer:
        usage: dict[str, Any] | None = None
        began = time.perf_counter()
        first = last = None
        for event in stream_chat(self._url, body):
            usage = event.get("usage") or usage
            if delta_text(event):
                last = time.perf_counter()
                first = first or last
        if usage is None or first is None or last is None:
            raise ServerError("the stream ended without text or usage")
        return _Answer(usage, 1e3 * (first - began), 1e3 * (last - first))


def _sample(answers: Sequence[_Answer], elapsed_s: float) -> Sample:
    def total(name: str) -> float:
        return float(sum(answer.usage["speculation"][name] for answer in answers))

    draft_ms, verify_ms = total("draft_ms"), total("verify_ms")
    gaps: list[float] = []
    for answer in answers:
        count = answer.usage["completion_tokens"] - 1
        gaps += [answer.rest_ms / max(1, count)] * count
    return Sample(
        tokens=sum(answer.usage["completion_tokens"] for answer in answers),
        elapsed_s=elapsed_s,
        sequence_steps=int(total("target_steps")),
        nodes=int(total("drafted_tokens")),
        # The server counts shared time for each request, and the wire as drafting.
        time_ms=TimeSplit(
            draft=draft_ms,
            verify=verify_ms,
            other=max(0.0, total("decode_ms") - draft_ms - verify_ms),
        ),
        first_token_ms=tuple(answer.first_token_ms for answer in answers),
        between_tokens_ms=tuple(gaps),
    )


def _png_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
