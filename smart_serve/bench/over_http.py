"""Throughput of a running server over HTTP: streaming clients, one thread each."""

from __future__ import annotations

import base64
import http.client
import io
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from smart_serve.bench.figures import Sample
from smart_serve.bench.workload import Question
from smart_serve.errors import ServerError

MAX_TOKENS = 128
TIMEOUT_S = 120.0


class HttpBench:
    """Sends the questions to one server, `batch` clients at a time."""

    def __init__(self, url: str, questions: Sequence[Question]) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        models = self._request("GET", "/v1/models", None)
        model = json.loads(b"".join(models))["data"][0]["id"]
        self._bodies = [_body(question) | {"model": model} for question in questions]

    def run(self, policy: str, batch: int, temperature: float) -> Sample:
        """All questions once; tokens as the server counts them in `usage`."""
        clock = time.perf_counter()
        with ThreadPoolExecutor(batch) as clients:
            jobs = [
                clients.submit(self._ask, body, policy, temperature, seed)
                for seed, body in enumerate(self._bodies)
            ]
            usages = [job.result() for job in jobs]
        elapsed_s = time.perf_counter() - clock
        details = [usage.get("speculation") or {} for usage in usages]
        return Sample(
            tokens=sum(usage["completion_tokens"] for usage in usages),
            elapsed_s=elapsed_s,
            sequence_steps=sum(detail.get("target_steps", 0) for detail in details),
            nodes=sum(detail.get("drafted_tokens", 0) for detail in details),
        )

    def _ask(
        self, body: dict[str, Any], policy: str, temperature: float, seed: int
    ) -> dict[str, Any]:
        """The answer's usage."""
        fields = {"temperature": temperature, "seed": seed, "speculation": {"policy": policy}}
        usage: dict[str, Any] | None = None
        for line in self._request("POST", "/v1/chat/completions", json.dumps(body | fields)):
            if line.startswith(b"data: {"):
                usage = json.loads(line[6:]).get("usage") or usage
        if usage is None:
            raise ServerError("the stream ended without usage")
        return usage

    def _request(self, method: str, path: str, body: str | None) -> Iterator[bytes]:
        """The response's lines as they arrive."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            if response.status != 200:
                raise ServerError(f"{path} answered {response.status}: {response.read(200)!r}")
            yield from response
        finally:
            connection.close()


def _body(question: Question) -> dict[str, Any]:
    buffer = io.BytesIO()
    question.picture.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question.text},
    ]
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
