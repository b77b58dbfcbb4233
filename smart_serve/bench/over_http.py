"""Throughput of a running server over HTTP: streaming clients, one thread each."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from smart_serve.bench.figures import Sample
from smart_serve.bench.workload import Question
from smart_serve.client import chat_body, get_json, stream_chat
from smart_serve.errors import ServerError

MAX_TOKENS = 128


class HttpBench:
    """Sends the questions to one server, `batch` clients at a time."""

    def __init__(self, url: str, questions: Sequence[Question]) -> None:
        self._url = url.rstrip("/")
        model = get_json(f"{self._url}/v1/models")["data"][0]["id"]
        self._bodies = [
            chat_body(model, question.text, [_png_url(question)], max_tokens=MAX_TOKENS)
            for question in questions
        ]

    def run(self, policy: str, batch: int, temperature: float) -> Sample:
        """All questions once; tokens as the server counts them in `usage`."""
        clock = time.perf_counter()
        with ThreadPoolExecutor(batch) as clients:
            jobs = [
                clients.submit(
                    self._ask,
                    {
                        **body,
                        "temperature": temperature,
                        "seed": seed,
                        "speculation": {"policy": policy},
                    },
                )
                for seed, body in enumerate(self._bodies)
            ]
            usages = [job.result() for job in jobs]
        elapsed_s = time.perf_counter() - clock
        return Sample(
            tokens=sum(usage["completion_tokens"] for usage in usages),
            elapsed_s=elapsed_s,
            sequence_steps=sum(usage["speculation"]["target_steps"] for usage in usages),
            nodes=sum(usage["speculation"]["drafted_tokens"] for usage in usages),
            draft_ms=sum(usage["speculation"]["draft_ms"] for usage in usages),
            verify_ms=sum(usage["speculation"]["verify_ms"] for usage in usages),
            step_ms=sum(usage["speculation"]["decode_ms"] for usage in usages),
        )

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer's usage."""
        usage: dict[str, Any] | None = None
        for event in stream_chat(self._url, body):
            usage = event.get("usage") or usage
        if usage is None:
            raise ServerError("the stream ended without usage")
        return usage


def _png_url(question: Question) -> str:
    buffer = io.BytesIO()
    question.picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
